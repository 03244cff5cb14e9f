"""One ModelActor, message by message: no thread, no process, and a clock that moves when the test says so."""

from typing import Any

import pytest

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Failed, Finished
from plimsoll.actors.spare_worker import SpareWorker
from plimsoll.actors.status import CleanupReport, State
from plimsoll.engine import protocol as p
from plimsoll.errors import (
    InsufficientMemory,
    InternalError,
    LoadFailed,
    ModelUnloaded,
    QueueFull,
    ShuttingDown,
    WorkerDied,
)
from plimsoll.memory.ledger import Need
from plimsoll.memory.sample import Level, Tracked

GIB = 1024**3
NEED = Need(weights_bytes=10 * GIB, measured_bytes=10 * GIB, kv_bytes=GIB)


class Boss:
    """A Supervisor and one model ``a`` beside an idle ``b``, moved by hand."""

    spare_serves = ""

    def __init__(self, fakes: Any, stage: Any, **settings: Any) -> None:
        self.fakes, self.stage = fakes, stage
        self.host = fakes.Host(stage)
        self.models = fakes.Models(stage, self.host, {"a": (NEED,), "b": (NEED,)}, a=settings)
        self.count = 0
        spare = SpareWorker(self.host.spawn, lambda model: model.source.name in self.spare_serves)
        self.ref = fakes.supervisor(stage, self.models, spare=spare)
        self.sample()
        fakes.look_for_loads(stage, self.ref, self.host)

    def sample(self) -> None:
        tracked = [Tracked(worker.pid) for worker in self.host.alive]
        self.tell(m.Sampled(self.host.sample(tracked), Level.NORMAL))

    def tell(self, message: m.Message) -> None:
        self.ref.tell(message)
        self.stage.drain()

    def chat(self, model: str = "a", *, drain: bool = True) -> Any:
        self.count += 1
        answer = self.fakes.Answer(self.stage, f"chat-{self.count}")
        self.ref.tell(m.Chat(answer.what, model, self.fakes.CHAT, answer))
        if drain:
            self.stage.drain()
        return answer

    def record(self, model: str = "a") -> Any:
        return self.stage.actor(self.ref)._records.get(model)

    @property
    def state(self) -> State | None:
        return self.record().status.state if self.record() else None

    @property
    def worker(self) -> Any:
        return self.host.newest

    def ready(self) -> Any:
        """A chat that has its first token."""
        answer = self.chat()
        self.worker.get_ready(10 * GIB)
        self.stage.drain()
        self.step()
        return answer

    def idle(self) -> None:
        self.ready()
        self.step(finish=True)
        assert self.state == State.READY

    def step(self, *, finish: bool = False) -> None:
        self.worker.step(list(self.worker.open) if finish else ())
        self.stage.drain()

    def tell_model(self, message: m.Message) -> None:
        self.record().ref.tell(message)
        self.stage.drain()

    def emergency(self) -> None:
        self.tell_model(m.MemoryEmergency(self.host.sample()))

    def die(self, code: int = -9) -> None:
        self.worker.die(code)
        self.stage.drain()


@pytest.fixture
def boss(fakes: Any, stage: Any) -> Boss:
    return Boss(fakes, stage)


# ---- generations


def test_what_a_former_worker_says_and_its_exit_are_ignored(boss: Boss) -> None:
    boss.idle()
    former = boss.worker
    boss.die()
    answer = boss.chat()
    assert boss.worker is not former
    former.say(p.Ready(boss.fakes.INFO))
    former.say(p.Step([("chat-2", "from the grave", 1)], [("chat-2", "stop", p.Usage())]))
    former._on_exit(-9, False)
    boss.stage.drain()
    assert boss.state == State.LOADING
    assert not answer.ended
    assert boss.record().status.pid == boss.worker.pid


def test_ready_that_comes_after_the_unload_is_ignored(boss: Boss) -> None:
    answer = boss.chat()
    boss.tell_model(m.Unload("asked for"))
    boss.worker.get_ready()
    boss.stage.drain()
    assert boss.state == State.STOPPING
    assert isinstance(answer.ending.error, ModelUnloaded)
    assert boss.worker.told == "term"
    assert not boss.worker.open


# ---- deaths


def test_the_backoff_doubles_and_the_third_death_in_a_minute_is_the_last(boss: Boss) -> None:
    answer = boss.chat()
    for death, backoff_s in enumerate([0.25, 0.5], start=1):
        boss.die()
        assert boss.state == State.BACKOFF
        boss.stage.advance(backoff_s - 0.01)
        assert len(boss.host.workers) == death
        boss.stage.advance(0.01)
        assert len(boss.host.workers) == death + 1
    boss.die()
    assert boss.state == State.FAILED
    assert isinstance(answer.ending.error, WorkerDied)


def test_deaths_that_are_further_apart_do_not_add_up(boss: Boss) -> None:
    answer = boss.chat()
    for _ in range(5):
        boss.die()
        assert boss.state == State.BACKOFF
        boss.stage.advance(31.0)
    boss.worker.get_ready()
    boss.stage.drain()
    boss.step(finish=True)
    assert isinstance(answer.ending, Finished)


def test_a_failed_model_cools_down_and_is_then_tried_again(boss: Boss) -> None:
    boss.models.unweighable = "a broken header"
    boss.chat()
    assert boss.state == State.FAILED
    boss.models.unweighable = ""
    boss.stage.advance(4.0)
    refused = boss.chat().ending.error
    assert isinstance(refused, LoadFailed)
    assert refused.retry_after_s == 1.0
    boss.stage.advance(1.0)
    boss.chat()
    assert boss.state == State.LOADING


def test_who_finds_the_queue_full_is_told_the_wait_by_measured_times(boss: Boss) -> None:
    boss.ready()
    boss.stage.advance(3.0)
    boss.step(finish=True)
    answers = [boss.chat() for _ in range(40)]
    taken = sum(not answer.ended for answer in answers)
    refused = answers[-1].ending.error
    assert isinstance(refused, QueueFull)
    assert refused.retry_after_s == 3.0 * taken


def test_files_that_do_not_answer_fail_their_waiters_after_half_a_minute(boss: Boss) -> None:
    boss.models.on_a_dead_disk = {"a"}
    answer = boss.chat()
    boss.stage.advance(29.0)
    assert (boss.state, answer.ended) == (State.LOADING, False)
    boss.stage.advance(1.0)
    assert boss.state == State.FAILED
    assert isinstance(answer.ending.error, LoadFailed)
    assert "a can't be loaded: its files have not answered for 30 s; look at the disk" in answer.ending.error.message


def test_what_a_dead_disk_says_late_is_not_taken_for_the_answer_to_a_later_question(boss: Boss) -> None:
    boss.models.on_a_dead_disk = {"a"}
    boss.chat()
    boss.stage.advance(40.0)
    second = boss.chat()
    assert boss.state == State.LOADING
    first_says, second_says = boss.models.never
    first_says((), "the file is gone")
    boss.stage.drain()
    assert (boss.state, second.ended) == (State.LOADING, False)
    second_says((NEED,), "")
    boss.stage.drain()
    boss.worker.get_ready()
    boss.stage.drain()
    boss.stage.advance(60.0)  # its own limit does not come true any more
    assert boss.state in (State.READY, State.BUSY)


def test_a_worker_that_can_not_be_started_fails_its_waiters_with_the_reason(boss: Boss) -> None:
    boss.host.can_not_spawn = True
    assert "no more processes" in boss.chat().ending.error.message
    assert boss.record().need is None


# ---- idleness


def test_an_idle_model_leaves_after_its_ttl(fakes: Any, stage: Any) -> None:
    boss = Boss(fakes, stage, idle_ttl_s=60.0)
    boss.idle()
    stage.advance(59.0)
    assert boss.state == State.READY
    stage.advance(1.0)
    assert boss.state == State.STOPPING


def test_a_ttl_that_rounding_leaves_a_rest_of_is_over(fakes: Any, stage: Any) -> None:
    boss = Boss(fakes, stage, idle_ttl_s=20.0)
    stage.time = 1011.6  # 1031.6 - 1011.6 is a little less than 20, and adding the rest to 1031.6 changes nothing
    boss.idle()
    stage.advance(20.0)
    assert boss.state == State.STOPPING


def test_a_model_that_is_busy_when_its_ttl_ends_gets_a_new_one(fakes: Any, stage: Any) -> None:
    boss = Boss(fakes, stage, idle_ttl_s=60.0)
    boss.ready()
    stage.advance(90.0)
    assert boss.state == State.BUSY
    boss.step(finish=True)
    stage.advance(59.0)
    assert boss.state == State.READY
    stage.advance(1.0)
    assert boss.state == State.STOPPING


# ---- draining


def test_an_earlier_deadline_shortens_the_drain(boss: Boss) -> None:
    answer = boss.ready()
    boss.tell_model(m.Unload("first", grace_s=60.0))
    boss.tell_model(m.Unload("second", grace_s=5.0))
    boss.stage.advance(4.9)
    assert boss.state == State.DRAINING
    boss.stage.advance(0.1)
    assert boss.state == State.STOPPING
    assert "second" in answer.ending.error.message


def test_a_later_deadline_does_not_lengthen_the_drain(boss: Boss) -> None:
    boss.ready()
    boss.tell_model(m.Unload("first", grace_s=5.0))
    boss.tell_model(m.Unload("second", grace_s=60.0))
    boss.stage.advance(5.0)
    assert boss.state == State.STOPPING


def test_a_drained_model_stops_with_its_last_answer(boss: Boss) -> None:
    answer = boss.ready()
    boss.tell_model(m.Unload("asked for", grace_s=60.0))
    boss.step(finish=True)
    assert isinstance(answer.ending, Finished)
    assert boss.worker.told == "shutdown"


# ---- emergencies


def test_an_emergency_ends_the_grace_of_a_draining_model(boss: Boss) -> None:
    answer = boss.ready()
    boss.tell_model(m.Unload("asked for", grace_s=60.0))
    boss.emergency()
    assert isinstance(answer.ending.error, InsufficientMemory)
    assert boss.worker.told == "term"


def test_an_emergency_hurries_a_stopping_worker(boss: Boss) -> None:
    boss.idle()
    boss.tell_model(m.Unload("asked for"))
    assert boss.worker.told == "shutdown"
    boss.emergency()
    assert boss.worker.told == "term"
    boss.stage.advance(2.0)
    assert boss.worker.told == "kill"


def test_an_emergency_stops_a_load_and_fails_who_waits_for_it(boss: Boss) -> None:
    answer = boss.chat()
    boss.emergency()
    assert isinstance(answer.ending.error, InsufficientMemory)
    assert boss.worker.told == "term"
    boss.die(-15)
    assert boss.state is None


def test_an_emergency_during_the_backoff_ends_it(boss: Boss) -> None:
    answer = boss.chat()
    boss.die()
    assert boss.state == State.BACKOFF
    boss.emergency()
    assert isinstance(answer.ending.error, InsufficientMemory)
    assert boss.state is None
    boss.stage.advance(60.0)
    assert not boss.host.alive


def test_a_worker_that_obeys_nothing_gets_shutdown_then_sigterm_then_sigkill(boss: Boss) -> None:
    boss.idle()
    boss.tell_model(m.Unload("asked for"))
    told = [boss.worker.told]
    for seconds in (2.0, 2.0):
        boss.stage.advance(seconds)
        told.append(boss.worker.told)
    assert told == ["shutdown", "term", "kill"]


# ---- grants


def test_a_chat_to_a_loaded_model_is_one_message_to_the_supervisor(boss: Boss, monkeypatch: pytest.MonkeyPatch) -> None:
    boss.idle()
    supervisor = boss.stage.actor(boss.ref)
    heard: list[type] = []
    receive = supervisor.on_receive
    monkeypatch.setattr(supervisor, "on_receive", lambda message: (heard.append(type(message)), receive(message)))
    answer = boss.chat()
    assert boss.state == State.BUSY
    for _ in range(3):
        boss.step()
    boss.step(finish=True)
    assert answer.ended
    assert heard == [m.Chat]
    assert boss.state == State.READY


def test_the_usage_that_nobody_told_the_supervisor_decides_who_is_evictable(boss: Boss) -> None:
    boss.idle()
    assert boss.record().seat().idle
    boss.stage.advance(5.0)
    boss.chat()
    assert not boss.record().seat().idle
    boss.stage.advance(5.0)
    boss.step(finish=True)
    seat = boss.record().seat()
    assert seat.idle
    assert seat.last_used == boss.stage.time


def test_a_refused_load_leaves_the_model_cold_and_the_next_chat_asks_again(boss: Boss) -> None:
    boss.host.others_bytes = 94 * GIB
    boss.sample()
    assert isinstance(boss.chat().ending.error, InsufficientMemory)
    assert boss.state == State.COLD
    boss.host.others_bytes = 10 * GIB
    boss.sample()
    boss.chat()
    assert boss.state == State.LOADING
    assert boss.host.alive


def test_a_chat_that_comes_between_the_grant_and_the_start_does_not_cost_the_grant(boss: Boss) -> None:
    boss.chat(drain=False)
    boss.chat(drain=False)
    supervisor, (weigh,) = boss.stage.actor(boss.ref), run_until_weighed(boss)
    actor = boss.stage.actor(boss.record().ref)
    # The answer to the weighing overtakes the second chat and a pin, whose news reaches the Supervisor after its grant.
    second = actor.actor_inbox.get()
    weigh()
    boss.stage._handle(actor)
    actor.actor_inbox.put(second)
    boss.stage._handle(actor)
    actor.actor_ref.tell(m.Pin(pinned=True))
    boss.stage._handle(actor)
    told = [supervisor.actor_inbox.get() for _ in range(supervisor.actor_inbox.qsize())]
    assert [type(one.message) for one in told][-2:] == [m.LoadRequested, m.StateChanged]
    for one in told:
        supervisor.actor_inbox.put(one)
    boss.stage.drain()
    assert boss.worker.commands
    assert boss.record().seat().reserved_bytes == NEED.total_bytes


def run_until_weighed(boss: Boss) -> list[Any]:
    supervisor = boss.stage.actor(boss.ref)
    while boss.record() is None or not supervisor.actor_inbox.empty():
        boss.stage._handle(supervisor)
    boss.stage._handle(boss.stage.actor(boss.record().ref))
    weigh, boss.stage.tasks = boss.stage.tasks, []
    return weigh


def test_what_a_draining_model_may_still_take_is_not_granted_to_another(boss: Boss) -> None:
    boss.idle()
    boss.host.others_bytes = 74 * GIB
    boss.chat()
    boss.tell_model(m.Unload("asked for", grace_s=60.0))
    boss.sample()
    # 84 GiB are used, 11 are needed for b, and a, which goes on generating, may take 1 more: 96 of 95.
    answer = boss.chat("b")
    assert len(boss.host.alive) == 1
    boss.step(finish=True)
    boss.die(0)
    boss.sample()
    assert not answer.ended
    assert len(boss.host.alive) == 1


# ---- failures of the actors themselves


def test_an_actor_that_fails_ends_its_requests_kills_its_worker_and_has_a_successor(
    boss: Boss, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = boss.ready()
    actor = boss.stage.actor(boss.record().ref)
    monkeypatch.setattr(actor._requests, "deliver", lambda _step: 1 / 0)
    boss.worker.step()
    waiting = boss.chat()
    assert isinstance(answer.ending.error, InternalError)
    assert isinstance(waiting.ending.error, InternalError)
    assert boss.worker.told == "kill"
    assert "ZeroDivisionError" in boss.stage.broken.pop()
    boss.die()
    later = boss.chat()
    boss.worker.get_ready()
    boss.stage.drain()
    boss.step(finish=True)
    assert isinstance(later.ending, Finished)


def test_chats_that_were_in_the_mailbox_when_the_model_stopped_are_handed_to_its_successor(boss: Boss) -> None:
    boss.idle()
    actor, first = boss.stage.actor(boss.record().ref), boss.worker
    actor.actor_ref.tell(m.Unload("asked for"))
    answers = [boss.chat(drain=False) for _ in range(3)]
    boss.stage.drain()
    first.die(0)
    boss.stage.drain()
    boss.sample()
    assert boss.worker is not first
    boss.worker.get_ready()
    boss.stage.drain()
    boss.step(finish=True)
    assert all(isinstance(answer.ending, Finished) for answer in answers)


def test_the_supervisor_survives_a_handler_that_raises_and_answers_for_it(boss: Boss) -> None:
    answer = boss.fakes.Answer(boss.stage, "status")
    supervisor = boss.stage.actor(boss.ref)
    supervisor._handlers[m.GetStatus] = lambda _message: 1 / 0
    boss.tell(m.GetStatus(answer))
    assert isinstance(answer.ending.error, InternalError)
    boss.tell(boss.fakes.Bug())
    boss.chat()
    assert boss.state == State.LOADING


def test_a_request_behind_the_end_of_the_supervisor_gets_its_ending(boss: Boss) -> None:
    boss.ref.stop(block=False)
    late = boss.chat()
    assert isinstance(late.ending, Failed)


def test_a_clean_up_that_the_end_of_the_server_overtakes_is_answered(boss: Boss) -> None:
    boss.idle()
    answer = boss.fakes.Answer(boss.stage, "clean-up", (CleanupReport, Failed))
    stopped = boss.fakes.Answer(boss.stage, "StopAll", (type(None),))
    boss.tell(m.CleanUpModels(answer, aggressive=True))
    boss.tell(m.StopAll(0.0, stopped))
    boss.die(0)
    assert stopped.ended
    boss.ref.stop(block=False)
    boss.stage.drain()
    assert isinstance(answer.ending.error, ShuttingDown)


def test_a_pinned_model_that_was_refused_is_loaded_when_there_is_room_without_any_change_of_level(
    fakes: Any, stage: Any
) -> None:
    boss = Boss(fakes, stage, pin=True)
    boss.die()
    boss.host.others_bytes = 84 * GIB + GIB // 2
    boss.sample()
    stage.advance(1.0)
    assert not boss.host.alive
    boss.host.others_bytes = 10 * GIB
    stage.advance(31.0)
    boss.sample()
    assert boss.host.alive
