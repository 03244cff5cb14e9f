"""A Watchdog that dies or falls silent is noticed and replaced, and nothing is loaded blindly meanwhile."""

import os
import threading
from typing import Any

import msgspec
import pytest

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Failed
from plimsoll.actors.settings import Settings
from plimsoll.actors.status import Status
from plimsoll.actors.watchdog import Watchdog, _Taken
from plimsoll.actors.watchdog_supervision import LOOK_S, SILENT_S, WatchdogSupervision
from plimsoll.errors import Unavailable
from plimsoll.journal import events as e
from plimsoll.memory.ledger import Need
from plimsoll.memory.levels import Thresholds
from plimsoll.memory.sample import Level, Tracked

GIB = 1024**3
SETTINGS = Settings(Thresholds(), None, queue=8, critical_grace_s=10.0)
NEED = Need(weights_bytes=10 * GIB, measured_bytes=10 * GIB, kv_bytes=GIB)


class Quiet(Watchdog):
    """The Watchdog, but its samples are the test's."""

    def on_start(self) -> None:
        pass


class Boss:
    """A Supervisor with a WatchdogSupervision and one model, moved by hand."""

    def __init__(self, fakes: Any, stage: Any) -> None:
        self.fakes, self.stage = fakes, stage
        self.host = fakes.Host(stage)
        self.models = fakes.Models(stage, self.host, {"a": (NEED,)})
        self.seen: list[e.Event] = []
        self.models.journal.subscribe(lambda entry: self.seen.append(entry.event))
        self.started: list[Level] = []
        self.can_start = True
        self.supervision = WatchdogSupervision(self.start, SETTINGS, stage, self.models.journal)
        self.ref = fakes.supervisor(stage, self.models, supervision=self.supervision)
        stage.drain()
        self.sample()

    def start(self, settings: Settings, level: Level) -> m.Ref:
        if not self.can_start:
            raise RuntimeError("can't start new thread")
        self.started.append(level)
        return self.stage.start(Quiet, self.host.sample, settings.thresholds, self.models.journal, level=level)

    @property
    def watchdog(self) -> Any:
        return self.stage.actor(self.supervision.watchdog)

    def sample(self) -> None:
        m.tell(self.supervision.watchdog, _Taken(self.host.sample(self.watchdog._tracked)))
        self.stage.drain()

    def watch(self, seconds: int) -> None:
        """Time with a sample every second."""
        for _ in range(seconds):
            self.stage.advance(1.0)
            self.sample()

    def kill(self) -> None:
        self.supervision.watchdog.stop(block=False)
        self.stage.drain()

    def chat(self) -> Any:
        answer = self.fakes.Answer(self.stage, f"chat at {self.stage.time}")
        self.ref.tell(m.Chat(answer.what, "a", self.fakes.CHAT, answer))
        self.stage.drain()
        return answer

    def status(self) -> Status:
        answer = self.fakes.Answer(self.stage, "status", (Status,))
        self.ref.tell(m.GetStatus(answer))
        self.stage.drain()
        return answer.ending

    def restarts(self) -> list[e.Event]:
        return [event for event in self.seen if isinstance(event, e.WatchdogRestarted)]


@pytest.fixture
def boss(fakes: Any, stage: Any) -> Boss:
    return Boss(fakes, stage)


def test_a_watchdog_that_is_heard_is_left_alone(boss: Boss) -> None:
    boss.watch(60)
    assert len(boss.started) == 1
    assert not boss.restarts()


def test_a_dead_watchdog_is_replaced_at_the_next_look_and_the_new_one_knows_everybody(boss: Boss) -> None:
    boss.chat()
    boss.host.newest.get_ready(10 * GIB)
    boss.watch(1)
    boss.kill()
    boss.stage.advance(LOOK_S)
    (event,) = boss.restarts()
    assert event.dead
    assert Tracked(boss.host.newest.pid) in boss.watchdog._tracked
    boss.sample()
    assert not boss.status().problems
    # What it says reaches the Supervisor and the models as before.
    boss.host.others_bytes = 90 * GIB
    boss.watch(2)
    assert boss.status().level == Level.EMERGENCY
    assert boss.host.newest.told == "term"


def test_a_silent_watchdog_is_replaced_after_five_seconds_and_the_level_goes_on(boss: Boss) -> None:
    boss.host.others_bytes = 97 * GIB
    boss.watch(2)
    assert boss.status().level == Level.CRITICAL
    boss.stage.advance(SILENT_S + LOOK_S)
    assert boss.started == [Level.NORMAL, Level.CRITICAL]
    boss.sample()
    assert boss.status().level == Level.CRITICAL


def test_the_new_watchdog_has_the_marks_of_the_configuration_as_it_is_now(boss: Boss) -> None:
    boss.supervision.follow(msgspec.structs.replace(SETTINGS, thresholds=Thresholds(10.0, 20.0, 30.0)))
    boss.kill()
    boss.stage.advance(LOOK_S)
    boss.host.others_bytes = 25 * GIB
    boss.watch(2)
    assert boss.status().level == Level.CRITICAL


def test_without_a_watchdog_loads_wait_and_are_then_refused_and_health_says_so(boss: Boss) -> None:
    boss.can_start = False
    boss.stage.advance(3.0)
    waiting = boss.chat()
    assert not waiting.ended
    assert not boss.host.alive
    boss.stage.advance(SILENT_S)
    assert isinstance(waiting.ending.error, Unavailable)
    assert "memory can't be read" in waiting.ending.error.message
    assert isinstance(boss.chat().ending, Failed)
    status = boss.status()
    assert status.admission == "closed"
    assert "memory can't be read" in status.problems[0]
    boss.stage.broken.clear()
    boss.can_start = True
    boss.stage.advance(60.0)
    boss.sample()
    boss.chat()
    assert boss.host.alive


def test_a_load_that_waited_for_a_new_watchdog_is_granted_with_its_first_sample(boss: Boss) -> None:
    boss.stage.advance(3.0)
    boss.chat()
    boss.kill()
    boss.stage.advance(LOOK_S)
    assert not boss.host.alive
    boss.sample()
    assert boss.host.alive


def test_one_that_falls_silent_again_and_again_is_replaced_ever_more_rarely(boss: Boss) -> None:
    boss.stage.advance(600.0)
    assert 8 <= len(boss.restarts()) <= 14


def test_a_machine_that_slept_has_not_lost_its_watchdog(boss: Boss) -> None:
    boss.watch(3)
    boss.stage.time += 8 * 3600
    boss.stage.advance(0.1)
    boss.watch(3)
    assert not boss.restarts()


# ---- real threads


def test_a_watchdog_actor_that_is_gone_comes_back_in_a_real_system(server: Any) -> None:
    system = server({"a": "fake:"})
    first = system.system._supervision.watchdog
    first.stop()
    system.until(lambda: system.system._supervision.watchdog is not first, "a new watchdog")
    assert system.chat("a").ending().reason == "stop"
    pid = system.model("a").pid
    assert pid
    system.memory.percent = 99.0
    system.until_state("a", None)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# The thread is meant to die.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_sampling_thread_that_is_gone_comes_back_in_a_real_system(server: Any, memory: Any) -> None:
    system = server({"a": "fake:"})
    first = system.system._supervision.watchdog
    memory.error = SystemExit()

    def names() -> list[str]:
        return [thread.name for thread in threading.enumerate()]

    system.until(lambda: "memory-sampler" not in names(), "the end of the thread")
    memory.error = None
    assert first.is_alive()
    system.until(lambda: system.system._supervision.watchdog is not first, "a new watchdog")
    assert system.chat("a").ending().reason == "stop"
