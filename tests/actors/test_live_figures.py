"""What the page and the metrics show of living models: pins set at run time, tokens per second, failing readers."""

import msgspec
import pykka
import pytest

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Delta, Failed
from plimsoll.actors.status import CleanupReport, ModelStatus, State
from plimsoll.errors import UnknownModel
from plimsoll.journal import events as e
from plimsoll.memory.sample import Level

CHATTY = "fake:tokens_per_s=100,answer=la,length=100000"


def pinned(system, model, yes):
    return system.tell(lambda reply: m.PinModel(model, yes, reply)).next((ModelStatus, Failed))


def load(system, model):
    return system.tell(lambda reply: m.LoadModel(model, reply)).next(ModelStatus)


def test_a_model_pinned_at_run_time_is_loaded_and_not_unloaded_for_being_idle(server):
    system = server({"a": {"source": "fake:", "idle_ttl": "50ms"}, "b": {"source": "fake:", "idle_ttl": "50ms"}})
    answer = pinned(system, "a", True)
    assert (answer.name, answer.pinned) == ("a", True)
    system.until_state("a", State.READY)
    load(system, "b")
    system.until_state("b", None)
    status = system.model("a")
    assert (status.state, status.pinned, status.idle_ttl_s) == (State.READY, True, None)
    assert system.status().pinned == {"a"}


def test_a_model_that_is_loaded_already_can_be_pinned_and_let_go(server):
    system = server({"a": {"source": "fake:", "idle_ttl": "1s"}})
    load(system, "a")
    assert pinned(system, "a", True).state == State.READY
    assert system.until(lambda: system.model("a").pinned, "the actor knows")
    assert pinned(system, "a", False).pinned is False
    system.until_state("a", None)


def test_a_pin_of_the_entry_can_be_taken_back(server):
    system = server({"a": {"source": "fake:", "pin": True, "idle_ttl": "50ms"}})
    system.until_state("a", State.READY)
    pinned(system, "a", False)
    system.until_state("a", None)
    load(system, "a")
    system.until_state("a", None)
    assert system.status().pinned == frozenset()


def test_a_pin_outlives_the_actor_that_heard_it(server):
    system = server({"a": "fake:"}, memory={"clear_after": "100ms"})
    pinned(system, "a", True)
    system.until_state("a", State.READY)
    system.memory.percent = 99.0
    system.until(lambda: not system.status().models, "an emergency ends it")
    assert system.status().pinned == {"a"}
    system.memory.percent = 30.0
    assert system.until_state("a", State.READY).pinned


def test_a_pinned_model_is_not_evicted_by_a_clean_up(server):
    system = server(dict.fromkeys("abc", "fake:"))
    for name in "abc":
        load(system, name)
    pinned(system, "a", True)
    report = system.tell(m.CleanUpModels).next(CleanupReport)
    assert report.unloaded == ["b"], "a is pinned, c was used last"


def test_a_model_that_was_pinned_after_it_was_chosen_for_eviction_stays(server):
    system = server({"a": "fake:"})
    load(system, "a")
    actor = next(ref for ref in pykka.ActorRegistry.get_by_class_name("ModelActor"))
    actor.tell(m.Pin(True))
    actor.tell(m.Unload("to make room for b", if_idle=True))
    system.until(lambda: system.model("a").pinned, "the actor knows")
    assert system.chat("a").ending().reason == "stop"
    assert system.model("a").state in {State.READY, State.BUSY}


def test_a_pin_tries_a_model_again_that_had_failed(server):
    system = server({"a": "fake:fail_load=no such file"})
    failed = system.tell(lambda reply: m.LoadModel("a", reply)).next(Failed)
    assert "no such file" in failed.error.message
    system.until_state("a", State.FAILED)
    pinned(system, "a", True)
    system.until_state("a", State.LOADING)
    system.until_state("a", State.FAILED)


def test_an_unknown_model_can_not_be_pinned(server):
    failed = pinned(server({"a": "fake:"}), "nope", True)
    assert isinstance(failed.error, UnknownModel)


def test_tokens_per_second_are_those_of_the_model_that_generates(server):
    system = server({"a": CHATTY, "b": "fake:"})
    load(system, "b")
    reply = system.chat("a")
    reply.next(Delta)
    rate = system.until(lambda: system.status().tokens_per_s.get("a"), "a rate")
    assert 1 <= rate <= 110
    assert set(system.status().tokens_per_s) == {"a"}
    system.tell(lambda answer: m.UnloadModel("a", answer, 0.0)).next(ModelStatus)
    assert system.status().tokens_per_s == {}


def test_the_rate_falls_to_nothing_after_the_answer(server):
    system = server({"a": "fake:tokens_per_s=100,answer=la,length=150"})
    system.chat("a").ending()
    system.until(lambda: not system.status().tokens_per_s, "no rate")


class TestCounting:
    """Message by message, without threads."""

    @pytest.fixture
    def boss(self, fakes, stage):
        host = fakes.Host(stage)
        models = fakes.Models(stage, host, {"a": ()})
        return fakes.supervisor(stage, models)

    def test_a_count_of_a_former_actor_is_not_taken_for_this_ones(self, boss, stage):
        supervisor = stage.actor(boss)
        record = supervisor._records.get_or_start("a")
        for at, urn in ((1.0, record.ref.actor_urn), (2.0, "urn:of-another"), (2.0, record.ref.actor_urn)):
            boss.tell(m.Counted("a", urn, 10 if urn == "urn:of-another" else int(at), at))
        boss.tell(m.Counted("nobody", "urn", 1, 1.0))
        stage.drain()
        assert record.throughput.per_second == 1.0


def recorded(system):
    heard = []
    system.system.journal.subscribe(lambda entry: heard.append(entry.event))
    return heard


def test_a_reader_that_fails_and_recovers_is_recorded(server, memory):
    system = server({"a": "fake:"})
    heard = recorded(system)
    working = memory.__class__.__call__

    def call(self, tracked=()):
        return msgspec.structs.replace(working(self, tracked), failed=self.failed)

    memory.__class__ = type("FailingMemory", (memory.__class__,), {"__call__": call, "failed": ("psi",)})
    system.until(lambda: heard, "the failure")
    memory.failed = ()
    system.until(lambda: len(heard) == 2, "the recovery")
    assert heard == [e.ReadersFailed(("psi",)), e.ReadersRecovered()]


def test_memory_that_can_not_be_read_at_all_is_recorded_with_the_reason(server):
    system = server({"a": "fake:"})
    heard = recorded(system)
    system.memory.error = OSError("no /proc here")
    system.until(lambda: heard, "the failure")
    system.memory.error = None
    system.until(lambda: len(heard) == 2, "the recovery")
    assert heard == [e.ReadersFailed((), "OSError: no /proc here"), e.ReadersRecovered()]
    assert system.status().level == Level.NORMAL


def reporting(memory, **fields):
    """From now on every sample of ``memory`` has these ``fields``."""
    working = memory.__class__.__call__
    changed = {"__call__": lambda self, tracked=(): msgspec.structs.replace(working(self, tracked), **fields)}
    memory.__class__ = type("ChangedMemory", (memory.__class__,), changed)


def test_the_log_names_use_for_a_level_that_stalls_alone_would_not_have_reached(server, memory):
    system = server({})
    heard = recorded(system)
    reporting(memory, pressure=Level.WARNING, pressure_source="psi")
    memory.percent = 96.0
    is_critical = {"level": e.LevelName.CRITICAL}.items()
    (change,) = system.until(
        lambda: [one for one in heard if is_critical <= msgspec.structs.asdict(one).items()], "the event"
    )
    assert change.source == memory([]).binding.source


def test_health_says_why_loads_wait_where_the_limit_can_not_be_kept(server, memory):
    system = server({})
    reporting(memory, failed=("footprint", "limit"))
    problems = system.until(lambda: len(system.status().problems) > 1 and system.status().problems, "both problems")
    why = "not every footprint is known, so memory.limit can't be kept"
    assert problems == [
        f"memory can't be read: {why}, no model is loaded meanwhile",
        "memory readers that fail: footprint, limit",
    ]
