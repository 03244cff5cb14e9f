"""A worker that has work and says nothing: told from one that computes, and replaced."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plimsoll.actors import messages as m
from plimsoll.actors.hang_detection import SILENCE_FACTOR, HangDetector
from plimsoll.actors.replies import Finished
from plimsoll.actors.status import State, Status
from plimsoll.actors.worker_life import GIVE_UP_S
from plimsoll.engine import protocol as p
from plimsoll.errors import InsufficientMemory, WorkerDied
from plimsoll.journal import events as e
from plimsoll.memory.ledger import Need
from plimsoll.memory.sample import Level, Tracked
from plimsoll.memory.sources import Activity
from plimsoll.memory.sources.processes import activity

GIB = 1024**3
LIMIT_S = 100.0
NEED = Need(weights_bytes=10 * GIB, measured_bytes=10 * GIB, kv_bytes=GIB)
STILL = Activity(1.0, 10)


class Watch:
    """A ``HangDetector`` that is looked at every five seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.detector = HangDetector(LIMIT_S, self.now)

    def after(self, seconds: float, does: Callable[[float], Activity | None] = lambda _now: STILL) -> float | None:
        """Let time pass; what the last look said."""
        until, found = self.now + seconds, None
        while self.now < until:
            self.now += self.detector.every_s
            found = self.detector.look(does(self.now), self.now) or found
        return found


# ---- the decision


def test_a_worker_that_stands_still_hangs_after_the_limit() -> None:
    watch = Watch()
    assert watch.after(LIMIT_S - 5) is None
    assert watch.after(5) == LIMIT_S


def test_any_frame_begins_the_count_anew() -> None:
    watch = Watch()
    for _ in range(5):
        assert watch.after(LIMIT_S - 10) is None
        watch.detector.heard()
    assert watch.after(LIMIT_S + 5) == LIMIT_S


@pytest.mark.parametrize(
    "does",
    [Activity, lambda now: Activity(now * 0.02), lambda now: Activity(0.0, int(now))],
    ids=["computes", "computes on a crowded machine", "reads or swaps"],
)
def test_one_that_works_without_a_word_gets_five_times_the_limit(does: Callable[[float], Activity]) -> None:
    watch = Watch()
    assert watch.after(LIMIT_S * SILENCE_FACTOR - 5, does) is None
    assert watch.after(5, does) == LIMIT_S * SILENCE_FACTOR


def test_one_that_works_and_then_stands_still_hangs_after_the_limit() -> None:
    watch = Watch()
    assert watch.after(LIMIT_S * 2, Activity) is None
    assert watch.after(LIMIT_S - 5) is None
    assert watch.after(10) is not None


def test_a_machine_that_slept_for_hours_has_slept_and_not_hung() -> None:
    watch = Watch()
    watch.after(LIMIT_S / 2)
    for _ in range(3):
        watch.now += 8 * 3600
        assert watch.after(5) is None
    assert watch.after(LIMIT_S) is not None


def test_a_process_whose_counters_can_not_be_read_has_the_plain_limit() -> None:
    assert Watch().after(LIMIT_S, lambda _now: None) == LIMIT_S


# ---- the counters


def test_the_counters_of_a_process_that_computes_and_reads_go_up(tmp_path: Path) -> None:
    before = activity(os.getpid())
    assert before
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    until = time.monotonic() + 10.0
    while (after := activity(os.getpid())) and after.cpu_s <= before.cpu_s and time.monotonic() < until:
        (tmp_path / "file").read_bytes()
    assert after
    assert after.cpu_s > before.cpu_s
    assert after.reads > before.reads


def test_the_name_of_a_process_may_hold_spaces_and_brackets(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    folder = tmp_path / "7"
    folder.mkdir()
    fields = "S 1 7 7 0 -1 4194304 600 0 25 0 300 200 0 0 20 0 4 0 1 1 1"
    (folder / "stat").write_text(f"7 (py) thon) {fields}\n")
    assert activity(7, tmp_path) == Activity(500 / os.sysconf("SC_CLK_TCK"), 25)
    (folder / "io").write_text("rchar: 1000\nwchar: 7\n")
    assert activity(7, tmp_path) == Activity(500 / os.sysconf("SC_CLK_TCK"), 1025)


def test_a_process_that_is_gone_has_no_counters(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    assert activity(7, tmp_path) is None


# ---- actors by hand


class Boss:
    """A Supervisor with one watched model, moved by hand."""

    def __init__(self, fakes: Any, stage: Any, **settings: Any) -> None:
        self.fakes, self.stage = fakes, stage
        self.host = fakes.Host(stage)
        self.models = fakes.Models(stage, self.host, {"a": (NEED,)}, a={"hang_after_s": LIMIT_S, **settings})
        self.seen: list[e.Event] = []
        self.models.journal.subscribe(lambda entry: self.seen.append(entry.event))
        self.ref = fakes.supervisor(stage, self.models)
        self.count = 0
        self.sample()
        fakes.look_for_loads(stage, self.ref, self.host)

    def sample(self) -> None:
        tracked = self.stage.actor(self.ref)._footprints.tracked.workers
        self.ref.tell(m.Sampled(self.host.sample([*tracked]), Level.NORMAL))
        self.stage.drain()

    def chat(self) -> Any:
        self.count += 1
        answer = self.fakes.Answer(self.stage, f"chat-{self.count}")
        self.ref.tell(m.Chat(answer.what, "a", self.fakes.CHAT, answer))
        self.stage.drain()
        return answer

    def ready(self) -> None:
        self.host.newest.get_ready(10 * GIB)
        self.stage.drain()
        self.sample()

    def step(self, *, finish: bool = False) -> None:
        worker = self.host.newest
        worker.step(list(worker.open) if finish else ())
        self.stage.drain()

    def die(self, **options: Any) -> None:
        self.host.newest.die(-9, **options)
        self.stage.drain()

    def saw(self, kind: type) -> list[Any]:
        return [event for event in self.seen if isinstance(event, kind)]

    @property
    def state(self) -> State:
        return self.stage.actor(self.ref)._records.get("a").status.state

    def problems(self) -> list[str]:
        answer = self.fakes.Answer(self.stage, "status", (Status,))
        self.ref.tell(m.GetStatus(answer))
        self.stage.drain()
        return answer.ending.problems


@pytest.fixture
def boss(fakes: Any, stage: Any) -> Boss:
    return Boss(fakes, stage)


def test_a_hung_worker_is_killed_its_streams_fail_and_who_had_no_token_is_served_by_the_next(boss: Boss) -> None:
    streaming = boss.chat()
    boss.ready()
    boss.step()
    untouched = boss.chat()
    boss.stage.advance(LIMIT_S + 10)
    hung = boss.host.newest
    assert hung.told == "kill"
    (event,) = boss.saw(e.WorkerHung)
    assert (event.model, event.pid, event.doing, event.requests) == ("a", hung.pid, "generating", 2)
    boss.die()
    assert isinstance(streaming.ending.error, WorkerDied)
    assert "said nothing for 1" in streaming.ending.error.message
    boss.sample()
    boss.stage.advance(1.0)
    assert boss.host.newest is not hung
    boss.ready()
    boss.step(finish=True)
    assert isinstance(untouched.ending, Finished)
    assert not boss.saw(e.WorkerDied)


def test_the_next_load_waits_until_the_memory_of_the_hung_one_is_seen_to_be_back(boss: Boss) -> None:
    boss.chat()
    boss.ready()
    boss.stage.advance(LIMIT_S + 10)
    boss.die(returns_in_s=1.5)
    boss.stage.advance(1.0)
    boss.sample()
    assert len(boss.host.workers) == 1
    boss.stage.advance(1.0)
    boss.sample()
    assert len(boss.host.workers) == 2
    (back,) = boss.saw(e.ModelUnloaded)
    assert (back.reason, back.freed_bytes) == ("it hung", 10 * GIB)


def test_a_worker_without_requests_may_be_silent_for_ever(boss: Boss) -> None:
    boss.chat()
    boss.ready()
    boss.step(finish=True)
    boss.stage.advance(LIMIT_S * 20)
    assert boss.state == State.READY
    # Its silence was none: the count begins with the next request.
    boss.chat()
    boss.stage.advance(LIMIT_S - 10)
    assert boss.host.newest.told == ""


def test_prefill_progress_is_progress(boss: Boss) -> None:
    boss.chat()
    boss.ready()
    for done in range(10):
        boss.stage.advance(LIMIT_S - 10)
        boss.host.newest.say(p.PrefillProgress("chat-1", done, 10))
        boss.stage.drain()
    assert boss.state == State.BUSY


def test_a_load_hangs_when_it_makes_no_progress_and_not_when_it_is_slow(boss: Boss) -> None:
    boss.chat()
    for done in range(10):
        boss.stage.advance(LIMIT_S - 10)
        boss.host.newest.say(p.LoadProgress("read", done, 10))
        boss.stage.drain()
    assert boss.state == State.LOADING
    boss.stage.advance(LIMIT_S + 10)
    assert boss.host.newest.told == "kill"
    assert boss.saw(e.WorkerHung)[0].doing == "loading"


def test_a_model_whose_every_load_hangs_is_given_up_after_three(boss: Boss) -> None:
    waiting = boss.chat()
    for _ in range(3):
        assert not waiting.ended
        boss.stage.advance(LIMIT_S + 10)
        boss.die()
        boss.sample()
        boss.stage.advance(1.0)
    assert boss.state == State.FAILED
    assert "hung while loading" in waiting.ending.error.message
    assert len(boss.host.workers) == 3


def test_without_a_limit_nothing_hangs(fakes: Any, stage: Any) -> None:
    boss = Boss(fakes, stage, hang_after_s=None)
    boss.chat()
    boss.ready()
    stage.advance(1e6)
    assert boss.state == State.BUSY


def test_a_model_that_drains_is_watched_too(boss: Boss) -> None:
    answer = boss.chat()
    boss.ready()
    boss.stage.actor(boss.ref)._records.get("a").ref.tell(m.Unload("asked for", grace_s=3600.0))
    boss.stage.drain()
    boss.stage.advance(LIMIT_S + 10)
    boss.die()
    assert answer.ended


def test_a_process_that_not_even_sigkill_ends_is_given_up_and_its_memory_is_granted_to_nobody(boss: Boss) -> None:
    answer = boss.chat()
    boss.ready()
    boss.step()
    boss.stage.advance(LIMIT_S + 10)
    stuck = boss.host.newest
    boss.stage.advance(GIVE_UP_S)
    assert isinstance(answer.ending.error, WorkerDied)
    assert boss.saw(e.WorkerStuck) == [e.WorkerStuck("a", stuck.pid, 10 * GIB)]
    assert any(f"pid {stuck.pid}" in problem and "10.0 GiB" in problem for problem in boss.problems())
    assert Tracked(stuck.pid) in boss.stage.actor(boss.ref)._footprints.tracked.workers
    # What it holds is not there for others: 100 GiB less 10 of the stuck one and 75 of other programs.
    boss.host.others_bytes = 75 * GIB
    boss.sample()
    boss.stage.advance(3.0)
    boss.sample()
    assert isinstance(boss.chat().ending.error, InsufficientMemory)
    boss.host.others_bytes = 10 * GIB
    boss.sample()
    served = boss.chat()
    boss.stage.advance(3.0)
    boss.sample()
    boss.ready()
    boss.step(finish=True)
    assert isinstance(served.ending, Finished)
    stuck.die(-9)
    boss.sample()
    assert boss.saw(e.StuckWorkerGone)
    assert not boss.problems()


def test_a_model_on_its_way_out_that_can_not_be_ended_does_not_hold_up_the_others(boss: Boss) -> None:
    boss.chat()
    boss.ready()
    boss.step(finish=True)
    boss.stage.actor(boss.ref)._records.get("a").ref.tell(m.Unload("asked for"))
    boss.stage.drain()
    boss.stage.advance(3.0 + GIVE_UP_S)
    boss.stage.advance(3.0)
    boss.sample()
    assert boss.saw(e.ModelUnloaded)[0].freed_bytes == 0
    boss.chat()
    boss.sample()
    assert len(boss.host.workers) == 2


# ---- real processes


def journal_of(system: Any) -> list[e.Event]:
    seen: list[e.Event] = []
    system.system.journal.subscribe(lambda entry: seen.append(entry.event))
    return seen


def test_a_worker_that_hangs_is_replaced_and_the_model_serves_again(server: Callable[..., Any]) -> None:
    system = server({"a": "fake:hang_at=5"}, engine={"hang_after": "300ms"}, memory={"patience": 0})
    seen = journal_of(system)
    touched = system.chat("a", "one two three four five six")
    failed = touched.ending()
    assert isinstance(failed.error, WorkerDied)
    assert "hung while it ran" in failed.error.message
    assert any(isinstance(event, e.WorkerHung) for event in seen)
    assert system.chat("a", "one").ending().reason == "stop"
    assert touched.endings() == 1


def test_a_stopped_worker_is_replaced_and_a_request_without_a_token_is_retried(server: Callable[..., Any]) -> None:
    system = server({"a": "fake:"}, engine={"hang_after": "300ms"})
    assert system.chat("a").ending().reason == "stop"
    first = system.model("a").pid
    os.kill(first, signal.SIGSTOP)
    assert system.chat("a").ending().reason == "stop"
    assert system.model("a").pid != first


def test_a_worker_that_prefills_for_longer_than_the_limit_is_left_alone(server: Callable[..., Any]) -> None:
    system = server({"a": "fake:prefill_s=1"}, engine={"hang_after": "300ms"})
    seen = journal_of(system)
    assert system.chat("a").ending().reason == "stop"
    assert not any(isinstance(event, e.WorkerHung) for event in seen)


def test_a_load_that_hangs_is_killed(server: Callable[..., Any]) -> None:
    system = server({"a": "fake:load_s=3600"}, engine={"hang_after": "200ms"})
    seen = journal_of(system)
    assert "hung while loading" in system.chat("a").ending().error.message
    assert sum(isinstance(event, e.WorkerHung) for event in seen) == 3
