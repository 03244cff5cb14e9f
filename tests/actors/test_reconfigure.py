"""A new configuration under a running system: what has changed changes, and what has not goes on."""

from collections.abc import Callable
from typing import Any

import pytest

from plimsoll import config
from plimsoll.actors import messages as m
from plimsoll.actors.replies import Delta
from plimsoll.actors.settings import Settings
from plimsoll.actors.status import ModelStatus, State
from plimsoll.catalog.names import Catalog
from plimsoll.errors import InsufficientMemory, ModelUnloaded, QueueFull, UnknownModel
from plimsoll.memory.sample import Level

Start = Callable[..., Any]
SLOW = "fake:tokens_per_s=50,answer=la,length=100000,context=1000000"
DRAIN_S = 20.0


def reload(system: Any, entries: dict[str, Any], drain_s: float = DRAIN_S, **sections: Any) -> None:
    """Tell the system what its configuration is now; entries as in the ``server`` fixture."""
    plain = {name: {"source": entry} if isinstance(entry, str) else entry for name, entry in entries.items()}
    models = {"builtin": False, **sections.pop("models", {}), "entries": plain}
    new = config.parse({"models": models, **sections})
    reply = system.tell(lambda reply: m.Reconfigure(Catalog(new.models), Settings.of(new), drain_s, reply))
    assert reply.next(type(None)) is None


def test_an_untouched_model_streams_on_while_another_is_replaced(server: Start) -> None:
    system = server({"a": SLOW, "b": "fake:answer=old,length=1"})
    stream = system.chat("a")
    stream.next(Delta)
    system.chat("b").ending()
    before = {one.name: one.pid for one in system.status().models}
    reload(system, {"a": SLOW, "b": "fake:answer=new,length=1"})
    answer = system.chat("b")
    assert answer.ending().reason == "stop"
    assert answer.text == "new"
    for _ in range(5):
        stream.next(Delta)
    after = {one.name: one.pid for one in system.status().models}
    assert after["a"] == before["a"]
    assert after["b"] != before["b"]
    assert not stream.endings()


def test_a_changed_model_ends_its_answers_and_the_next_request_gets_the_new_entry(server: Start) -> None:
    system = server({"a": "fake:tokens_per_s=40,answer=old,length=40"})
    running = system.chat("a")
    running.next(Delta)
    reload(system, {"a": "fake:answer=new,length=1"})
    system.until_state("a", State.DRAINING)
    waiting = system.chat("a")
    assert running.ending().reason == "stop"
    assert running.text.split() == ["old"] * 40
    assert waiting.ending().reason == "stop"
    assert waiting.text == "new"


def test_answers_that_outlast_the_drain_are_ended_with_their_reason(server: Start) -> None:
    system = server({"a": SLOW})
    running = system.chat("a")
    running.next(Delta)
    reload(system, {"a": "fake:answer=new,length=1"}, drain_s=0.1)
    error = running.ending().error
    assert isinstance(error, ModelUnloaded)
    assert "the configuration changed" in error.message


def test_answers_that_outlast_the_drain_go_on_in_the_new_worker_of_the_same_files(server: Start) -> None:
    source = "fake:tokens_per_s=100,answer=la,length=60"
    system = server({"a": source})
    running = system.chat("a")
    running.next(Delta)
    before = system.model("a").pid
    reload(system, {"a": {"source": source, "context": 5000}}, drain_s=0.1)
    assert running.ending().reason == "stop"
    assert running.text.split() == ["la"] * 60
    assert system.model("a").pid != before


def test_a_removed_model_s_answers_that_outlast_the_drain_end(server: Start) -> None:
    system = server({"a": SLOW, "b": "fake:"})
    running = system.chat("a")
    running.next(Delta)
    reload(system, {"b": "fake:"}, drain_s=0.1)
    assert isinstance(running.ending().error, ModelUnloaded)
    assert running.endings() == 1


def test_a_removed_model_ends_its_answers_and_is_unknown_then(server: Start) -> None:
    system = server({"a": "fake:tokens_per_s=40,answer=old,length=20", "b": "fake:"})
    running = system.chat("a")
    running.next(Delta)
    reload(system, {"b": "fake:"})
    assert running.ending().reason == "stop"
    assert running.text.split() == ["old"] * 20
    system.until_state("a", None)
    assert isinstance(system.chat("a").ending().error, UnknownModel)
    assert system.chat("b").ending().reason == "stop"


def test_who_waits_for_a_model_that_is_replaced_while_it_loads_is_answered_by_the_new_one(server: Start) -> None:
    system = server({"a": "fake:load_s=20"})
    waiting = [system.chat("a") for _ in range(3)]
    load = system.tell(lambda reply: m.LoadModel("a", reply))
    system.until(lambda: (one := system.model("a")) and one.pid, "a worker")
    reload(system, {"a": "fake:answer=new,length=1"})
    for one in waiting:
        assert one.ending().reason == "stop"
        assert (one.text, one.endings()) == ("new", 1)
    assert load.next(ModelStatus).state in (State.READY, State.BUSY)


def test_a_model_that_could_not_be_loaded_is_tried_again_when_its_entry_is_mended(server: Start) -> None:
    system = server({"a": "fake:fail_load=no such tensor"})
    assert "no such tensor" in system.chat("a").ending().error.message
    reload(system, {"a": "fake:answer=mended,length=1"})
    answer = system.chat("a")
    assert answer.ending().reason == "stop"
    assert answer.text == "mended"


def test_a_threshold_applies_to_the_very_memory_there_is(server: Start) -> None:
    system = server({"a": "fake:", "b": "fake:"})
    system.memory.percent = 60.0
    for name in ("a", "b"):
        system.chat(name).ending()
    reload(system, {"a": "fake:", "b": "fake:"}, memory={"warning_percent": 50})
    system.until(lambda: system.status().level == Level.WARNING, "the level by the new threshold")
    system.until_state("a", None)
    assert system.model("b") is not None, "the last used one stays at warning"
    # Another critical threshold decides about loads, too.
    marks = {"warning_percent": 40, "critical_percent": 55, "clear_after": "100ms"}
    reload(system, {"a": "fake:", "b": "fake:"}, memory=marks)
    assert isinstance(system.chat("a").ending().error, InsufficientMemory)


def test_a_shorter_idle_ttl_counts_from_the_last_use(server: Start) -> None:
    system = server({"a": "fake:"})
    system.chat("a").ending()
    assert system.model("a").idle_ttl_s == 900
    reload(system, {"a": "fake:"}, models={"idle_ttl": "100ms"})
    system.until_state("a", None)


def test_a_model_that_becomes_pinned_is_loaded_and_stays_without_a_restart(server: Start) -> None:
    system = server({"a": "fake:"}, models={"idle_ttl": "100ms"})
    reload(system, {"a": {"source": "fake:", "pin": True}}, models={"idle_ttl": "100ms"})
    loaded = system.until_state("a", State.READY)
    assert (loaded.pinned, loaded.idle_ttl_s) == (True, None)
    reload(system, {"a": "fake:"}, models={"idle_ttl": "100ms"})
    system.until_state("a", None)


def test_a_pin_alone_does_not_load_a_model_again(server: Start) -> None:
    system = server({"a": "fake:"})
    system.chat("a").ending()
    before = system.model("a")
    reload(system, {"a": {"source": "fake:", "pin": True}})
    after = system.until(lambda: (one := system.model("a")).pinned and one, "pinned")
    assert (after.pid, before.pinned) == (before.pid, False)


def test_what_was_set_at_run_time_stays_unless_the_file_says_another_thing(server: Start) -> None:
    system = server({"a": "fake:"}, models={"idle_ttl": "10m"})
    system.chat("a").ending()
    system.system.supervisor.tell(m.KeepAlive("a", None))
    system.until(lambda: system.model("a").idle_ttl_s is None, "kept alive for ever")
    reload(system, {"a": "fake:"}, models={"idle_ttl": "10m", "queue": 3})
    assert system.model("a").idle_ttl_s is None
    reload(system, {"a": "fake:"}, models={"idle_ttl": "20m"})
    assert system.until(lambda: system.model("a").idle_ttl_s, "the file's word") == 1200


@pytest.mark.parametrize("queue", [1, 2])
def test_the_queue_s_bound_holds_for_living_models(server: Start, queue: int) -> None:
    entries = {"a": SLOW}
    system = server(entries, engine={"max_batch": 1})
    system.chat("a").next(Delta)
    reload(system, entries, models={"queue": queue})
    replies = [system.chat("a") for _ in range(queue + 1)]
    assert isinstance(replies[-1].ending().error, QueueFull)
    assert sum(reply.endings() for reply in replies) == 1


def test_a_pin_of_the_run_time_stays_until_the_file_says_another_thing(server: Start) -> None:
    system = server({"a": "fake:"}, models={"idle_ttl": "100ms"})
    system.tell(lambda reply: m.PinModel("a", True, reply)).next(ModelStatus)
    system.until_state("a", State.READY)
    reload(system, {"a": "fake:"}, models={"idle_ttl": "110ms"})
    assert system.status().pinned == {"a"}
    reload(system, {"a": {"source": "fake:", "pin": True}}, models={"idle_ttl": "110ms"})
    reload(system, {"a": "fake:"}, models={"idle_ttl": "110ms"})
    assert system.status().pinned == frozenset()
    system.until_state("a", None)
