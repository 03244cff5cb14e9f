"""The Supervisor, its Admission, the Watchdog and the ModelActors against everything that can happen to them.

Hypothesis says what happens and in which order messages are handled; the actors are the real ones, without threads.
"""

import logging
import math
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from plimsoll.actors import messages as m
from plimsoll.actors.keeper import Keeper
from plimsoll.actors.supervisor import Supervisor
from plimsoll.actors.watchdog import Watchdog, _Taken
from plimsoll.engine import protocol as p
from plimsoll.journal import events
from plimsoll.memory.levels import Thresholds
from plimsoll.memory.plan import Need
from plimsoll.memory.sample import Level

GIB = 1024**3
THRESHOLDS = Thresholds()
GRACE_S = 10.0
EXAMPLES = int(os.environ.get("MACHINE_EXAMPLES", "40"))
NEEDS = {
    "small": (Need(weights_bytes=10 * GIB, measured_bytes=10 * GIB, kv_bytes=2 * GIB),),
    "middle": (Need(weights_bytes=30 * GIB, measured_bytes=30 * GIB, kv_bytes=5 * GIB),),
    "two-ways": (
        Need(weights_bytes=50 * GIB, measured_bytes=50 * GIB, kv_bytes=4 * GIB, dequantize=True),
        Need(weights_bytes=20 * GIB, measured_bytes=20 * GIB, kv_bytes=2 * GIB),
    ),
    "pinned": (Need(weights_bytes=5 * GIB, measured_bytes=5 * GIB, kv_bytes=GIB),),
    "fleeting": (Need(weights_bytes=8 * GIB, measured_bytes=8 * GIB, kv_bytes=GIB),),
    "remote": (Need(weights_bytes=25 * GIB, measured_bytes=25 * GIB, kv_bytes=GIB),),
    "huge": (Need(weights_bytes=200 * GIB),),
}
SETTINGS = {"pinned": {"pin": True}, "fleeting": {"idle_ttl_s": 20.0}, "small": {"hang_after_s": 30.0}}
# They fit side by side, so that in the end all that are pinned are loaded.
PINNABLE = ("pinned", "fleeting", "small")

names = st.sampled_from(list(NEEDS))
picks = st.integers(0, 7)
# 0 is the order that a failure shrinks to: the actors in turn.
orders = st.one_of(st.just(0), st.integers(1, 1 << 16))
# Several things may happen before anyone has handled the first.
at_rest = st.booleans()


class SilentWatchdog(Watchdog):
    """The Watchdog, but the samples are the test's."""

    def on_start(self) -> None:
        pass


class WatchedSupervisor(Supervisor):
    """The Supervisor, and whoever watches what it tells the models."""

    watch: Any

    def _tell_model(self, name: str, message: m.Message) -> None:
        self.watch.on_tell(name, message)
        super()._tell_model(name, message)

    def on_receive(self, message: Any) -> None:
        super().on_receive(message)
        if isinstance(message, m.Stays):
            self.watch.evicted.discard(message.model)


class Unheard(logging.Handler):
    """An exception that was caught and logged is a failure too, unless it was ordered."""

    def __init__(self, fakes: Any, stage: Any) -> None:
        super().__init__()
        self.fakes, self.stage = fakes, stage

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and not isinstance(self.stage.handling, self.fakes.Bug):
            self.stage.broken.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


class Machine(RuleBasedStateMachine):
    """Everything that may happen, and what must hold whatever happens."""

    def __init__(self, fakes: Any) -> None:
        super().__init__()
        self.fakes = fakes
        self.stage = fakes.Stage()
        self.host = fakes.Host(self.stage)
        self.host.on_told = self.on_told
        self.host.on_load = self.on_load
        self.models = fakes.Models(self.stage, self.host, NEEDS, **SETTINGS)
        self.catalog = self.models
        self.models.here.discard("remote")
        self.models.on_start = self.on_life
        self.models.journal.subscribe(lambda entry: self.on_event(entry.event))
        self.log = Unheard(fakes, self.stage)
        logging.getLogger("plimsoll.memory").addHandler(self.log)

        self.chats: dict[str, Any] = {}
        self.answers: list[Any] = []
        self.unloads: list[tuple[str, float, Any]] = []
        # When each life of a model may be stopped though it is busy, at the earliest.
        self.may_stop: dict[str, float] = {}
        self.evicted: set[str] = set()
        self.hung: set[int] = set()
        # Grants that have no worker yet; a worker carries its own.
        self.pending: dict[str, int] = {}
        self.pins = {"pinned": True}
        self.at_sample: dict[int, int] = {}
        self.stopping_at: float | None = None

        WatchedSupervisor.watch = self
        self.keeper = Keeper(self.start_watchdog, m.Marks(THRESHOLDS, None), self.stage, self.models.journal)
        self.supervisor = fakes.supervisor(
            self.stage, self.models, WatchedSupervisor, keeper=self.keeper, critical_grace_s=GRACE_S
        )
        self.boss = self.stage.actor(self.supervisor)
        self.settle(0)
        self.sample()
        self.settle(0)

    def start_watchdog(self, marks: m.Marks, level: Level) -> m.Ref:
        return self.stage.start(SilentWatchdog, self.host.sample, marks.thresholds, self.models.journal, level=level)

    @property
    def watchdog(self) -> m.Ref:
        return self.keeper.watchdog

    # ---- what is watched

    def broken(self, what: str) -> None:
        self.stage.broken.append(what)

    def on_life(self, name: str) -> None:
        self.may_stop.pop(name, None)
        self.pending.pop(name, None)

    def on_load(self, worker: Any) -> None:
        worker.granted = self.pending.pop(worker.name)

    def excuse(self, grace_s: float) -> None:
        until = self.stage.time + grace_s
        for slot in self.boss._slots:
            name = slot.status.name
            self.may_stop[name] = min(until, self.may_stop.get(name, until))

    def on_event(self, event: Any) -> None:
        match event:
            case events.LevelChanged(level="critical") | events.CleanupStarted(aggressive=True):
                self.excuse(GRACE_S)
            case events.LevelChanged(level="emergency"):
                self.excuse(0.0)
            case events.WorkerHung():
                self.hung.add(event.pid)
            case events.ModelUnloaded():
                self.evicted.discard(event.model)

    def on_told(self, worker: Any, how: str) -> None:
        """A worker is told to stop; a busy one, or one whose actor knows that it is pinned, only for a reason."""
        name, now = worker.name, self.stage.time
        if worker.told or worker.poisoned or worker.pid in self.hung or isinstance(self.stage.handling, self.fakes.Bug):
            return
        busy = bool(worker.open)
        pinned = any(actor._idleness.pinned for actor in self.stage.actors if getattr(actor, "_name", "") == name)
        if not (busy or pinned):
            return
        reasons = [self.may_stop[name]] if name in self.may_stop else []
        reasons += [at for model, at, answer in self.unloads if model == name and not answer.ended]
        if self.stopping_at is not None:
            reasons.append(self.stopping_at)
        if not reasons:
            self.broken(f"{name} ({busy=}) was told to stop ({how}) for no reason")
        elif busy and now < min(reasons):
            self.broken(f"{name} was told to stop ({how}) {min(reasons) - now} s before its grace was over")

    def on_tell(self, name: str, message: m.Message) -> None:
        match message:
            case m.Load():
                self.check_grant(name, message.need)
                self.pending[name] = message.need.total_bytes
            case m.Unload(hand_back=True):
                until = self.stage.time + message.grace_s
                self.may_stop[name] = min(until, self.may_stop.get(name, until))
            case m.Unload(if_idle=True):
                if self.evicted - {name}:
                    self.broken(f"{name} is evicted while {self.evicted} still leave")
                self.evicted.add(name)

    def check_grant(self, name: str, need: Need) -> None:
        """What others and the dead held by the last sample, what the living may grow to, and the new one: it fits."""
        sample = self.boss._outlook.sample
        # SIGKILL takes milliseconds and a load takes seconds.
        alive = [worker for worker in self.host.alive if worker.told != "kill"]
        base = sample.binding.used - sum(self.at_sample.get(worker.pid, 0) for worker in alive)
        for worker in alive:
            base += worker.bytes if worker.told else max(worker.granted, worker.bytes)
        base += sum(size for other, size in self.pending.items() if other != name)
        if base + need.total_bytes > sample.binding.total * THRESHOLDS.critical / 100:
            self.broken(f"{name} was granted {need.total_bytes / GIB} GiB on top of {base / GIB} GiB of 100")
        if self.boss._outlook.level >= Level.CRITICAL and sample.used_percent >= THRESHOLDS.warning:
            self.broken(f"{name} was granted a load at {self.boss._outlook.level}")

    # ---- how things move

    def settle(self, order: int) -> None:
        self.stage.drain(order)
        self.pending.clear()

    def sample(self) -> None:
        if not self.watchdog.is_alive():
            return
        actor = self.stage.actor(self.watchdog)
        self.at_sample = {worker.pid: worker.bytes for worker in self.host.alive}
        self.watchdog.tell(_Taken(self.host.sample(actor._tracked)))

    def tell(self, make: Any, what: str, ends: tuple[type, ...], order: int | None) -> Any:
        answer = self.fakes.Answer(self.stage, what, ends)
        self.answers.append(answer)
        m.tell(self.supervisor, make(answer))
        if order is not None:
            self.settle(order)
        return answer

    def pick(self, workers: list[Any], number: int) -> Any:
        return workers[number % len(workers)]

    def serving(self) -> list[Any]:
        return [worker for worker in self.host.alive if worker.ready and worker.told != "kill"]

    def loading(self) -> list[Any]:
        return [worker for worker in self.host.alive if not worker.ready and worker.told != "kill"]

    # ---- clients

    @rule(name=names, order=orders, rest=at_rest)
    def someone_chats(self, name: str, order: int, rest: bool) -> None:
        number = f"chat-{len(self.chats)}-{name}"
        self.chats[number] = answer = self.fakes.Answer(self.stage, number)
        m.tell(self.supervisor, m.Chat(number, name, self.fakes.CHAT, answer))
        if rest:
            self.settle(order)

    @precondition(lambda self: self.open_chats())
    @rule(number=picks, order=orders, rest=at_rest)
    def someone_goes(self, number: int, order: int, rest: bool) -> None:
        name = self.open_chats()[number % len(self.open_chats())]
        m.tell(self.supervisor, m.Cancel(name, name.split("-", 2)[2]))
        if rest:
            self.settle(order)

    def open_chats(self) -> list[str]:
        return [name for name, answer in self.chats.items() if not answer.ended]

    # ---- workers

    @precondition(lambda self: self.loading())
    @rule(number=picks, order=orders, share=st.sampled_from([1.0, 0.5]))
    def a_load_ends(self, number: int, order: int, share: float) -> None:
        worker = self.pick(self.loading(), number)
        if isinstance(worker.commands[0], p.FetchModel):
            self.models.here.add(worker.name)
            worker.say(p.Fetched())
            worker.die(0)
        else:
            held = worker.granted - NEEDS[worker.name][-1].kv_bytes
            worker.get_ready(int(held * share))
        self.settle(order)

    @precondition(lambda self: self.serving())
    @rule(number=picks, order=orders, ends=st.booleans(), rest=at_rest)
    def tokens_come(self, number: int, order: int, ends: bool, rest: bool) -> None:
        worker = self.pick(self.serving(), number)
        worker.bytes = min(worker.bytes + GIB, worker.granted)
        worker.step(list(worker.open)[:1] if ends else ())
        if rest:
            self.settle(order)

    @precondition(lambda self: self.host.alive)
    @rule(
        number=picks,
        order=orders,
        how=st.sampled_from(["kill", "oom", "segv", "exit", "memory", "engine"]),
        returns_in_s=st.sampled_from([0.0, 0.3, 5.0]),
        rest=at_rest,
    )
    def a_worker_dies(self, number: int, order: int, how: str, returns_in_s: float, rest: bool) -> None:
        worker = self.pick(self.host.alive, number)
        if how in ("memory", "engine"):
            worker.poisoned = True
            kind = "load" if how == "engine" else "memory"
            worker.say(p.EngineError(how, "told to") if worker.ready else p.LoadError(kind, "told to"))
            if worker.ready:
                self.settle(order)
        codes = {"kill": -9, "oom": -9, "segv": -11}
        worker.die(codes.get(how, 1), oom_killed=how == "oom", returns_in_s=returns_in_s)
        if rest:
            self.settle(order)

    @precondition(lambda self: any(worker.told for worker in self.host.alive))
    @rule(number=picks, order=orders, returns_in_s=st.sampled_from([0.0, 0.3, 5.0]), rest=at_rest)
    def a_worker_obeys(self, number: int, order: int, returns_in_s: float, rest: bool) -> None:
        """Those that no rule lets obey are the ones that ignore everything up to SIGKILL."""
        worker = self.pick([worker for worker in self.host.alive if worker.told], number)
        worker.die({"shutdown": 0, "term": -15, "kill": -9}[worker.told], returns_in_s=returns_in_s)
        if rest:
            self.settle(order)

    # ---- memory and time

    @rule(percent=st.sampled_from([5, 30, 50, 70, 84, 86, 91, 96, 99]), samples=st.integers(0, 2), order=orders)
    def others_use(self, percent: int, samples: int, order: int) -> None:
        self.host.others_bytes = percent * GIB
        for _ in range(samples):
            self.sample()
        self.settle(order)

    @rule(
        seconds=st.sampled_from([0.1, 1.0, 4.0, 11.0, 25.0]),
        every_s=st.sampled_from([0.5, 0.1, 100.0]),
        order=orders,
    )
    def time_passes(self, seconds: float, every_s: float, order: int) -> None:
        self.wait(seconds, every_s, order)

    def wait(self, seconds: float, every_s: float, order: int) -> None:
        # In whole steps: added up on the clock, rounding can leave a rest that no addition takes away.
        for _ in range(math.ceil(seconds / every_s)):
            self.stage.advance(min(every_s, seconds), order)
            for worker in self.host.alive:
                if worker.told == "kill":
                    worker.die(-9)
            if every_s < 100.0:
                self.sample()
            self.settle(order)

    @rule(order=orders)
    def memory_can_not_be_read(self, order: int) -> None:
        for _ in range(3):
            m.tell(self.watchdog, _Taken(None, "no /proc here"))
        self.settle(order)

    # ---- admins

    @rule(name=names, order=orders, rest=at_rest)
    def a_model_is_asked_for(self, name: str, order: int, rest: bool) -> None:
        self.tell(
            lambda answer: m.LoadModel(name, answer),
            f"LoadModel({name})",
            (m.ModelStatus, m.Failed),
            order if rest else None,
        )

    @rule(name=names, grace_s=st.sampled_from([0.0, 5.0, 60.0]), order=orders, rest=at_rest)
    def an_unload_is_asked_for(self, name: str, grace_s: float, order: int, rest: bool) -> None:
        def make(answer: Any) -> m.UnloadModel:
            self.unloads.append((name, self.stage.time + grace_s, answer))
            return m.UnloadModel(name, answer, grace_s)

        self.tell(make, f"UnloadModel({name})", (m.ModelStatus, m.Failed), order if rest else None)

    @rule(aggressive=st.booleans(), order=orders, rest=at_rest)
    def a_clean_up_is_asked_for(self, aggressive: bool, order: int, rest: bool) -> None:
        self.tell(
            lambda answer: m.CleanUpModels(answer, aggressive),
            f"CleanUpModels({aggressive=})",
            (m.CleanupReport, m.Failed),
            order if rest else None,
        )

    @rule(name=st.sampled_from(PINNABLE), pinned=st.booleans(), order=orders, rest=at_rest)
    def a_pin_is_asked_for(self, name: str, pinned: bool, order: int, rest: bool) -> None:
        self.pins[name] = pinned
        self.tell(
            lambda answer: m.PinModel(name, pinned, answer),
            f"PinModel({name}, {pinned=})",
            (m.ModelStatus, m.Failed),
            order if rest else None,
        )

    @rule(
        name=names,
        files=st.sampled_from(["", "other"]),
        drain_s=st.sampled_from([0.0, 5.0]),
        order=orders,
        rest=at_rest,
    )
    def the_configuration_changes(self, name: str, files: str, drain_s: float, order: int, rest: bool) -> None:
        self.catalog = self.catalog.with_files(name, files)
        self.tell(
            lambda answer: m.Reconfigure(self.catalog, THRESHOLDS, None, 4, GRACE_S, drain_s, answer),
            f"Reconfigure({name}, {files=}, {drain_s=})",
            (type(None),),
            order if rest else None,
        )

    @rule(clean_up=st.booleans(), order=orders)
    def the_health_is_asked_for(self, clean_up: bool, order: int) -> None:
        answer = self.tell(lambda answer: m.GetStatus(answer, clean_up), "GetStatus", (m.Status,), order)
        assert answer.ended

    @precondition(lambda self: self.boss._slots)
    @rule(number=picks, order=orders, rest=at_rest)
    def an_actor_fails(self, number: int, order: int, rest: bool) -> None:
        slots = list(self.boss._slots)
        m.tell(slots[number % len(slots)].ref, self.fakes.Bug())
        if rest:
            self.settle(order)

    @rule(order=orders)
    def the_supervisor_fails(self, order: int) -> None:
        m.tell(self.supervisor, self.fakes.Bug())
        self.settle(order)

    @rule(order=orders)
    def the_watchdog_fails(self, order: int) -> None:
        self.watchdog.stop(block=False)
        self.settle(order)

    # ---- what must hold

    @invariant()
    def nothing_is_broken(self) -> None:
        assert not self.stage.broken

    @invariant()
    def no_worker_is_an_orphan(self) -> None:
        known = {actor._worker.pid for actor in self.stage.actors if hasattr(actor, "_worker")}
        assert {worker.pid for worker in self.host.alive if worker.told != "kill"} <= known

    @invariant()
    def no_grant_is_forgotten(self) -> None:
        if not self.stage.at_rest:
            return
        for worker in self.host.alive:
            if not worker.told:
                assert self.boss._slots.get(worker.name).seat().reserved_bytes == worker.granted, worker.name

    # ---- the end

    def teardown(self) -> None:
        try:
            if not self.stage.broken:
                # Half of the runs stop in the middle of it all.
                if len(self.chats) % 2:
                    self.everything_comes_to_an_end()
                self.the_server_stops()
        finally:
            logging.getLogger("plimsoll.memory").removeHandler(self.log)
            self.stage.close()

    def be_good(self) -> None:
        """One second in which every worker does what it is there for."""
        for worker in self.host.alive:
            if worker.told:
                worker.die(-9)
            elif isinstance(worker.commands[0], p.FetchModel):
                self.models.here.add(worker.name)
                worker.say(p.Fetched())
                worker.die(0)
            elif not worker.ready:
                worker.get_ready()
            else:
                worker.step(list(worker.open))
        self.wait(1.0, 0.5, 0)

    def everything_comes_to_an_end(self) -> None:
        self.settle(0)
        self.host.others_bytes = GIB
        for _ in range(90):
            self.be_good()
        for answer in (*self.chats.values(), *self.answers):
            assert answer.ended, f"{answer.what} was forgotten: {answer.items}"
        status = self.tell(m.GetStatus, "GetStatus", (m.Status,), 0).ending
        assert status.admission == "open"
        pinned = {name for name, is_pinned in self.pins.items() if is_pinned}
        assert status.pinned == pinned
        assert {one.name for one in status.models if one.pinned and one.state == m.State.READY} == pinned
        self.someone_chats("small", 0, rest=True)
        for _ in range(10):
            self.be_good()
        assert isinstance(list(self.chats.values())[-1].ending, m.Finished)
        self.nothing_is_broken()

    def the_server_stops(self) -> None:
        self.stopping_at = self.stage.time + 3.0
        stopped = self.tell(lambda answer: m.StopAll(3.0, answer), "StopAll", (type(None),), None)

        def stop_at_once() -> None:
            if stopped.ended:
                self.stage.after_each = lambda: None
                assert all(worker.told == "kill" for worker in self.host.alive)
                self.supervisor.stop(block=False)

        self.stage.after_each = stop_at_once
        for _ in range(40):
            self.wait(1.0, 0.5, 0)
        assert stopped.ended, "the server never stops"
        assert not self.host.alive
        for answer in self.chats.values():
            assert answer.ended, f"{answer.what} was forgotten when the server stopped: {answer.items}"
        self.watchdog.stop(block=False)
        self.settle(0)
        for answer in self.answers:
            assert answer.ended, f"{answer.what} was forgotten when the server stopped: {answer.items}"
        assert not self.stage.actors
        self.nothing_is_broken()


@pytest.fixture
def quiet() -> Iterator[None]:
    """Tens of thousands of failures are ordered here; nobody reads their log."""
    loggers = [logging.getLogger(name) for name in ("pykka", "plimsoll")]
    before = [(one.level, one.propagate) for one in loggers]
    for one in loggers:
        one.propagate = False
    loggers[0].setLevel(logging.CRITICAL + 1)
    yield
    for one, (level, propagate) in zip(loggers, before, strict=True):
        one.setLevel(level)
        one.propagate = propagate


# One takes 0.1 to 0.3 s here, and may take ten times that on a crowded machine.
@pytest.mark.timeout(max(120, 2 * EXAMPLES))
@pytest.mark.usefixtures("quiet")
def test_whatever_happens_memory_is_kept_and_every_request_ends(fakes: Any) -> None:
    run_state_machine_as_test(
        lambda: Machine(fakes),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            print_blob=True,
            report_multiple_bugs=False,
            # A step is a whole life of several actors; that is slow by Hypothesis's measure, not by ours.
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
