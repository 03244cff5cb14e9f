"""The Watchdog, the Supervisor and the models together: who stops, who stays and who loads, sample by sample.

The actors are the real ones, without threads; the machine's memory and the time are the test's.
"""

import gc
import threading
from typing import Any

import msgspec
import pytest

from plimsoll.actors import messages as m
from plimsoll.actors.cleanup import collect_garbage
from plimsoll.actors.replies import Failed, Finished
from plimsoll.actors.settings import Settings
from plimsoll.actors.spare_worker import SpareWorker
from plimsoll.actors.status import CleanupReport, ModelStatus, State
from plimsoll.actors.watchdog import Watchdog, _Taken
from plimsoll.actors.watchdog_supervision import WatchdogSupervision
from plimsoll.engine import protocol as p
from plimsoll.errors import InsufficientMemory
from plimsoll.journal import events
from plimsoll.memory.ledger import Need
from plimsoll.memory.levels import Thresholds
from plimsoll.memory.sample import Level

GIB = 1024**3
GRACE_S = 10.0
NEED = Need(weights_bytes=10 * GIB, measured_bytes=10 * GIB, kv_bytes=GIB)


class SilentWatchdog(Watchdog):
    """The Watchdog, but the samples are the test's."""

    def on_start(self) -> None:
        pass


class Ship:
    """A machine of 100 GiB, of which others hold what the test says; each sample comes 0.1 s after the last."""

    def __init__(self, fakes: Any, stage: Any, **settings: Any) -> None:
        self.fakes, self.stage = fakes, stage
        self.host = fakes.Host(stage)
        self.models = fakes.Models(stage, self.host, dict.fromkeys("abc", (NEED,)), **settings)
        self.events: list[Any] = []
        self.models.journal.subscribe(lambda entry: self.events.append(entry.event))
        self.supervision = WatchdogSupervision(
            self._start_watchdog,
            Settings(Thresholds(), None, queue=8, critical_grace_s=GRACE_S),
            stage,
            self.models.journal,
        )
        spare = SpareWorker(self.host.spawn, lambda _model: True)
        self.ref = fakes.supervisor(
            stage, self.models, supervision=self.supervision, spare=spare, critical_grace_s=GRACE_S, queue=8
        )
        self.boss = stage.actor(self.ref)
        self.count = 0
        stage.drain()
        self.sample()

    def _start_watchdog(self, settings: Settings, level: Level) -> m.Ref:
        return self.stage.start(
            SilentWatchdog,
            self.host.sample,
            settings.thresholds,
            self.models.journal,
            level=level,
            gauge=self.models.gauge,
        )

    @property
    def watchdog(self) -> Any:
        return self.stage.actor(self.supervision.watchdog)

    def sample(self, percent: float | None = None, times: int = 1, *, drain: bool = True) -> None:
        """Others fill memory up to this, or hold what they hold."""
        for _ in range(times):
            self.stage.advance(0.1)
            if percent is not None:
                ours = self.host.used_bytes() - self.host.others_bytes
                self.host.others_bytes = int(percent * GIB) - ours
            self.supervision.watchdog.tell(_Taken(self.host.sample(self.watchdog._tracked)))
            if drain:
                self.stage.drain()

    def chat(self, model: str) -> Any:
        self.count += 1
        answer = self.fakes.Answer(self.stage, f"chat-{self.count}")
        self.ref.tell(m.Chat(answer.what, model, self.fakes.CHAT, answer))
        self.stage.drain()
        return answer

    def stream(self, model: str) -> Any:
        """A chat that has its first token; the model is loaded for it if it is not."""
        answer = self.chat(model)
        if self.state(model) == State.LOADING:
            self.sample()
            self.worker(model).get_ready(10 * GIB)
            self.stage.drain()
        self.worker(model).step()
        self.stage.drain()
        return answer

    def idle(self, model: str) -> None:
        self.stream(model)
        self.finish(model)
        assert self.state(model) == State.READY

    def finish(self, model: str) -> None:
        worker = self.worker(model)
        worker.step(list(worker.open))
        self.stage.drain()

    def bury(self) -> None:
        """Those who were told to stop do."""
        for worker in self.host.alive:
            if worker.told:
                worker.die(-15)
        self.stage.drain()

    def worker(self, model: str) -> Any:
        return next(one for one in reversed(self.host.workers) if one.commands and one.name == model)

    def state(self, model: str) -> State | None:
        record = self.boss._records.get(model)
        return record.status.state if record else None

    @property
    def level(self) -> Level:
        return self.watchdog._state.level

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def ship(fakes: Any, stage: Any) -> Ship:
    return Ship(fakes, stage)


# ---- emergencies


def test_a_second_emergency_inside_the_held_level_stops_what_was_loaded_since(ship: Ship) -> None:
    for _ in range(5):
        answer = ship.stream("a")
        ship.sample(99)
        assert isinstance(answer.ending.error, InsufficientMemory)
        assert ship.worker("a").told == "term"
        ship.bury()
        ship.sample(40, times=3)
        assert ship.level == Level.EMERGENCY, "the level is held, for people and events"
    assert len(ship.of(events.LevelChanged)) == 1


def test_a_minute_at_97_inside_the_held_level_drains_and_ends_what_was_loaded_since(ship: Ship) -> None:
    ship.sample(99)
    ship.sample(40)
    answer = ship.stream("a")
    ship.sample(97)
    assert ship.state("a") == State.BUSY, "one sample confirms nothing"
    ship.sample(97)
    assert ship.state("a") == State.DRAINING
    ship.sample(97, times=95)
    assert not answer.ended
    ship.sample(97, times=10)
    assert isinstance(answer.ending.error, InsufficientMemory)
    assert ship.level == Level.EMERGENCY


def test_a_worker_that_begins_while_the_emergency_lasts_is_stopped_by_the_next_sample(ship: Ship) -> None:
    ship.sample(40)
    ship.chat("a")
    ship.sample(40, drain=False)
    ship.host.others_bytes = 99 * GIB
    ship.sample(drain=False)
    ship.stage.drain(order=3)
    ship.sample(99)
    assert all(worker.told for worker in ship.host.alive)


def test_an_actor_that_subscribes_late_is_told_by_the_next_sample(ship: Ship) -> None:
    ship.sample(99)
    told: list[Any] = []

    class Late(ship.fakes.Mailbox):
        def on_receive(self, message: Any) -> None:
            told.append(type(message))

    late = ship.stage.start(Late)
    ship.supervision.watchdog.tell(m.Subscribe(late))
    ship.stage.drain()
    ship.sample(99)
    ship.sample(97, times=2)
    ship.sample(80)
    assert told == [m.MemoryEmergency, m.MemoryCritical, m.MemoryCritical]


def test_an_emergency_does_not_wait_for_the_supervisor(ship: Ship) -> None:
    answer = ship.stream("a")
    ship.host.others_bytes = 99 * GIB
    ship.sample(drain=False)
    for _ in range(10):  # only the Watchdog and the model come to their mailboxes
        for actor in ship.stage.actors:
            if actor is not ship.boss and not actor.actor_inbox.empty():
                ship.stage._handle(actor)
    assert ship.worker("a").told == "term"
    assert isinstance(answer.ending.error, InsufficientMemory)


def test_every_further_sample_of_an_emergency_tells_the_same_and_adds_nothing(ship: Ship) -> None:
    answer = ship.stream("a")
    told: list[str] = []
    ship.host.on_told = lambda _worker, how: told.append(how)
    ship.sample(99, times=10)
    assert told == ["term"]
    assert answer.ended
    ship.stage.advance(2.0)
    assert told == ["term", "kill"]
    ship.sample(99, times=10)
    assert told == ["term", "kill"]
    assert len(ship.of(events.WorkerKilled)) == 1


def test_a_worker_that_was_told_to_end_in_order_is_hurried_once_by_an_emergency(ship: Ship) -> None:
    ship.idle("a")
    told: list[str] = []
    ship.host.on_told = lambda worker, how: told.append(how) if worker is ship.worker("a") else None
    ship.sample(97, times=2)
    assert told == ["shutdown"]
    ship.sample(99, times=3)
    assert told == ["shutdown", "term"]


def test_an_order_to_stop_that_is_older_than_an_emergency_lasts_stops_nobody(ship: Ship) -> None:
    answer = ship.stream("a")
    ship.host.others_bytes = 99 * GIB
    ship.sample(drain=False)
    ship.stage._handle(ship.watchdog)
    ship.host.others_bytes = 20 * GIB
    later = msgspec.structs.replace(ship.host.sample(), time_s=ship.stage.time + 1.1)
    ship.models.gauge.note(later, Level.NORMAL)
    ship.stage.drain()
    assert not ship.worker("a").told
    ship.finish("a")
    assert answer.ending.reason == "stop"


def test_an_emergency_stops_all_though_memory_is_well_as_soon_as_the_first_has_stopped(ship: Ship) -> None:
    answers = [ship.stream("a"), ship.stream("b")]
    ship.host.others_bytes = 79 * GIB
    ship.sample(drain=False)
    ship.stage._handle(ship.watchdog)
    ship.stage._handle(ship.stage.actor(ship.boss._records.get("a").ref))
    ship.worker("a").die(-15)
    ship.sample(drain=False)
    ship.stage._handle(ship.watchdog)
    assert ship.models.gauge.still(Level.EMERGENCY) is False
    ship.stage.drain()
    assert ship.worker("b").told
    assert all(answer.ended for answer in answers)


# ---- falling levels


def test_a_level_that_falls_to_critical_drains_nobody_and_keeps_the_spare_worker(ship: Ship) -> None:
    ship.sample(99)
    ship.sample(40)
    answer = ship.stream("a")
    ship.idle("b")
    ship.sample(91, times=110)
    assert ship.level == Level.CRITICAL
    assert ship.state("a") == State.BUSY
    ship.sample(84, times=110)
    assert ship.level == Level.WARNING
    assert (ship.state("a"), ship.state("b")) == (State.BUSY, State.READY)
    assert not answer.ended
    assert not [command for command in ship.worker("a").commands if isinstance(command, p.TrimCaches)]


# ---- a drain that is called off


def test_a_drain_is_called_off_when_memory_is_back_and_who_waits_is_served_by_the_same_worker(ship: Ship) -> None:
    answers = [ship.stream("a"), ship.stream("a")]
    ship.sample(97, times=2)
    assert ship.state("a") == State.DRAINING
    waiting = ship.chat("a")
    ship.sample(97, times=20)
    ship.sample(40)
    assert ship.state("a") == State.BUSY
    ship.stage.advance(2 * GRACE_S)
    ship.finish("a")
    assert {answer.ending.reason for answer in (*answers, waiting)} == {"stop"}
    assert len(ship.host.workers) == 1 + len([one for one in ship.host.workers if not one.commands])
    assert not ship.worker("a").told
    assert len(ship.of(events.CleanupDone)) == len(ship.of(events.CleanupStarted))


def test_a_request_that_was_handed_back_is_served_when_the_drain_is_called_off(ship: Ship) -> None:
    ship.stream("a")
    ship.sample(96.5)
    ship.sample(96.5, drain=False)
    ship.stage._handle(ship.watchdog)
    # The order to leave is on its way to the model, and the Supervisor does not know of it yet.
    late = ship.chat("a")
    assert ship.state("a") == State.DRAINING
    ship.sample(50.0)
    after = ship.chat("a")
    ship.finish("a")
    assert isinstance(late.ending, Finished)
    assert isinstance(after.ending, Finished)


def test_the_newest_sample_is_looked_at_when_the_grace_is_over(ship: Ship) -> None:
    answer = ship.stream("a")
    ship.sample(97, times=2)
    ship.host.others_bytes = 20 * GIB
    # The Supervisor has not come to it yet when the deadline does.
    ship.models.gauge.note(ship.host.sample(), Level.NORMAL)
    ship.stage.advance(GRACE_S + 1)
    assert ship.state("a") == State.BUSY
    assert not answer.ended


def test_a_model_that_becomes_idle_while_it_drains_stays_if_memory_is_back(ship: Ship) -> None:
    ship.stream("a")
    ship.sample(97, times=2)
    ship.models.gauge.note(ship.host.sample(), Level.WARNING)
    ship.finish("a")
    assert ship.state("a") == State.READY
    assert not ship.worker("a").told


def test_an_idle_model_is_not_unloaded_by_an_order_that_is_older_than_a_healthy_sample(ship: Ship) -> None:
    ship.idle("a")
    ship.host.others_bytes = 86 * GIB
    ship.sample(drain=False)
    ship.sample(drain=False)
    ship.host.others_bytes = 20 * GIB
    ship.sample(drain=False)
    ship.stage.drain()
    assert ship.state("a") == State.READY
    assert not ship.worker("a").told
    ship.sample()
    assert not ship.boss._admission.pending_unloads


def test_it_is_called_off_as_often_as_memory_is_back_and_begins_anew_as_often(ship: Ship) -> None:
    answer = ship.stream("a")
    for _ in range(5):
        ship.sample(97, times=2)
        assert ship.state("a") == State.DRAINING
        ship.sample(97, times=80)
        ship.sample(50)
        assert ship.state("a") == State.BUSY
    ship.sample(97, times=2)
    ship.sample(97, times=105)
    assert isinstance(answer.ending.error, InsufficientMemory)


def test_an_unload_by_hand_is_not_called_off_and_keeps_its_own_time(ship: Ship) -> None:
    answer = ship.stream("a")
    gone = ship.fakes.Answer(ship.stage, "unload", (ModelStatus, Failed))
    ship.ref.tell(m.UnloadModel("a", gone, 60.0))
    ship.stage.drain()
    ship.sample(97, times=2)
    ship.sample(40)
    assert ship.state("a") == State.DRAINING
    ship.stage.advance(50.0)
    assert not answer.ended, "the ten seconds of critical are over with it"
    ship.stage.advance(12.0)
    assert answer.ended
    ship.bury()
    assert gone.ended


def test_an_unload_by_hand_of_a_model_that_drains_for_memory_stays_when_memory_is_back(ship: Ship) -> None:
    ship.stream("a")
    ship.sample(97, times=2)
    gone = ship.fakes.Answer(ship.stage, "unload", (ModelStatus, Failed))
    ship.ref.tell(m.UnloadModel("a", gone, 60.0))
    ship.sample(40)
    assert ship.state("a") == State.DRAINING
    ship.finish("a")
    ship.bury()
    assert gone.ended


def test_a_clean_up_by_hand_unloads_all_at_any_level(ship: Ship) -> None:
    answer = ship.stream("a")
    report = ship.fakes.Answer(ship.stage, "clean-up", (CleanupReport, Failed))
    ship.ref.tell(m.CleanUpModels(report, aggressive=True))
    ship.stage.drain()
    ship.sample(times=3)
    assert ship.state("a") == State.DRAINING
    ship.sample(times=100)
    ship.bury()
    ship.sample()
    assert answer.ended
    assert report.ending.unloaded == ["a"]


# ---- loading again


def test_a_load_is_granted_by_the_first_healthy_sample_after_an_emergency(ship: Ship) -> None:
    ship.stream("a")
    ship.sample(40, times=40)
    ship.sample(99)
    ship.bury()
    ship.sample(99, times=5)
    ship.sample(40)
    assert ship.level == Level.EMERGENCY
    ship.chat("b")
    ship.sample(40)
    ship.worker("b").get_ready(10 * GIB)
    ship.stage.drain()
    ship.finish("b")
    assert ship.state("b") == State.READY


def test_a_pinned_model_loads_again_as_soon_as_there_is_room(fakes: Any, stage: Any) -> None:
    ship = Ship(fakes, stage, a={"pin": True})
    ship.sample()
    ship.worker("a").get_ready(10 * GIB)
    stage.drain()
    first = ship.worker("a")
    ship.sample(99)
    ship.bury()
    ship.sample(99, times=5)
    assert ship.worker("a") is first
    ship.sample(40, times=2)
    assert ship.level == Level.EMERGENCY
    assert ship.worker("a") is not first


# ---- garbage


def test_garbage_is_collected_after_a_clean_up_and_not_on_the_supervisor_s_thread(
    ship: Ship, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    done = threading.Event()

    def collect(*_: Any) -> int:
        threads.append(threading.current_thread().name)
        done.set()
        return 0

    monkeypatch.setattr(gc, "collect", collect)
    ship.boss._admission.cleanups._collect = collect_garbage
    report = ship.fakes.Answer(ship.stage, "clean-up", (CleanupReport, Failed))
    ship.ref.tell(m.CleanUpModels(report, aggressive=True))
    ship.stage.drain()
    assert report.ended
    assert done.wait(60.0)
    assert threads == ["garbage"]


# ---- a GPU with memory of its own


@pytest.fixture
def on_gpu(fakes: Any, stage: Any, monkeypatch: pytest.MonkeyPatch) -> Ship:
    """A GPU of 100 GiB in a machine of 32."""
    begin = fakes.Host.__init__

    def with_gpu(host: Any, *given: Any) -> None:
        begin(host, *given)
        host.on_gpu = True

    monkeypatch.setattr(fakes.Host, "__init__", with_gpu)
    return Ship(fakes, stage)


def test_a_full_gpu_ends_its_workers_and_loads_begin_again_with_its_memory(on_gpu: Ship) -> None:
    answer = on_gpu.stream("a")
    on_gpu.sample(99)
    assert on_gpu.worker("a").told == "term"
    assert "(accelerator:0)" in answer.ending.error.message
    assert [event.source for event in on_gpu.of(events.LevelChanged)] == ["accelerator:0"]
    refused = on_gpu.chat("b")
    on_gpu.sample(99, times=3)
    assert refused.ending.error.details["binding_source"] == "accelerator:0"
    on_gpu.bury()
    on_gpu.sample(40, times=3)
    on_gpu.stream("a")


def test_a_critical_gpu_drains_and_a_gpu_at_warning_loses_its_idle_models(on_gpu: Ship) -> None:
    on_gpu.idle("a")
    on_gpu.idle("b")
    on_gpu.stream("c")
    on_gpu.sample(88, times=30)
    assert (on_gpu.worker("a").told, on_gpu.worker("b").told) == ("term", ""), "the least recently used goes first"
    on_gpu.sample(97, times=2)
    assert on_gpu.state("c") == State.DRAINING


def test_an_unload_from_the_gpu_is_done_when_the_gpu_shows_it(on_gpu: Ship) -> None:
    on_gpu.idle("a")
    on_gpu.sample(97, times=2)
    worker = on_gpu.worker("a")
    assert worker.told == "shutdown"
    worker.die(0, returns_in_s=0.35)
    on_gpu.stage.drain()
    on_gpu.sample(times=3)
    assert on_gpu.of(events.ModelUnloaded) == [], "the process has gone, and the GPU's memory is not back"
    on_gpu.sample(times=3)
    (unloaded,) = on_gpu.of(events.ModelUnloaded)
    assert unloaded.expected_bytes == unloaded.freed_bytes == 10 * GIB
