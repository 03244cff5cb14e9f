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
from judge import Judge

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Failed, Finished
from plimsoll.actors.settings import Settings
from plimsoll.actors.status import CleanupReport, ModelStatus, State, Status
from plimsoll.actors.supervisor import Supervisor
from plimsoll.actors.watchdog import Watchdog, _Taken
from plimsoll.actors.watchdog_supervision import WatchdogSupervision
from plimsoll.engine import protocol as p
from plimsoll.memory.ledger import Need
from plimsoll.memory.levels import Thresholds
from plimsoll.memory.sample import Level

GIB = 1024**3
THRESHOLDS = Thresholds()
GRACE_S = 10.0
PATIENCE_S = 20.0
# What a request may wait for its load after memory is free again, whatever level is held still.
SOON_S = 6
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
# Percent: the lines, the lines at which levels are left, and between them.
raws = st.sampled_from([99, 96, 94, 91, 88, 82, 70, 30])
# 0 is the order that a failure shrinks to: the actors in turn.
orders = st.one_of(st.just(0), st.integers(1, 1 << 16))
# Several things may happen before anyone has handled the first.
at_rest = st.booleans()


# What a model says to the Supervisor. A stuck worker is stuck whatever life it had, and a Handback carries a request.
FROM_MODEL = (
    m.StateChanged,
    m.LoadRequested,
    m.Stays,
    m.RanOutOfMemory,
    m.WorkerHangs,
    m.Counted,
    m.ChildStopped,
)


class SilentWatchdog(Watchdog):
    """The Watchdog, but the samples are the test's."""

    judge: Judge

    def on_start(self) -> None:
        pass

    def on_receive(self, message: Any) -> None:
        if isinstance(message, _Taken) and message.sample:
            self.judge.on_sample(message.sample)
        super().on_receive(message)


class WatchedSupervisor(Supervisor):
    """The Supervisor, the judge of what it tells the models, and a memory of what they told it."""

    judge: Judge
    heard: dict[str, list[m.Message]]
    late: list[m.Message]

    def _tell_model(self, name: str, message: m.Message) -> None:
        self.judge.on_tell(name, message)
        super()._tell_model(name, message)

    def on_receive(self, message: Any) -> None:
        if isinstance(message, FROM_MODEL):
            self._remember(message)
        if isinstance(message, m.CleanUpModels) and message.aggressive:
            self.judge.excuse()
        super().on_receive(message)
        if isinstance(message, m.Stays):
            self.judge.evicted.discard(message.model)

    def _remember(self, message: Any) -> None:
        name = message.status.name if isinstance(message, m.StateChanged) else message.model
        if (record := self._records.get(name)) and not any(message is one for one in self.late):
            said = self.heard.setdefault(record.ref.actor_urn, [])
            said.append(message)
            if isinstance(message, m.ChildStopped):
                # Its life is over: all that it has ever said is late from now on.
                self.late.extend(self.heard.pop(record.ref.actor_urn)[-6:])
                del self.late[:-20]


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
        self.host.starts_as_task = True
        self.models = fakes.Models(self.stage, self.host, NEEDS, **SETTINGS)
        self.catalog = self.models
        self.models.here.discard("remote")
        self.log = Unheard(fakes, self.stage)
        logging.getLogger("plimsoll.memory").addHandler(self.log)

        self.chats: dict[str, Any] = {}
        self.answers: list[Any] = []
        self.pins = {"pinned": True}
        self.judge = Judge(
            self.stage,
            self.host,
            self.chats,
            bug=fakes.Bug,
            thresholds=THRESHOLDS,
            grace_s=GRACE_S,
            patience_s=PATIENCE_S,
        )
        self.models.on_start = self.judge.on_life
        self.models.journal.subscribe(lambda entry: self.judge.on_event(entry.event))

        SilentWatchdog.judge = WatchedSupervisor.judge = self.judge
        WatchedSupervisor.heard, WatchedSupervisor.late = {}, []
        self.supervision = WatchdogSupervision(
            self.start_watchdog,
            Settings(THRESHOLDS, None, queue=8, critical_grace_s=GRACE_S, patience_s=PATIENCE_S),
            self.stage,
            self.models.journal,
        )
        self.supervisor = fakes.supervisor(
            self.stage,
            self.models,
            WatchedSupervisor,
            supervision=self.supervision,
            critical_grace_s=GRACE_S,
            patience_s=PATIENCE_S,
        )
        self.boss = self.judge.boss = self.stage.actor(self.supervisor)
        self.settle(0)
        self.sample()
        self.settle(0)

    def start_watchdog(self, settings: Settings, level: Level) -> m.Ref:
        options = {"level": level, "gauge": self.models.gauge}
        return self.stage.start(SilentWatchdog, self.host.sample, settings.thresholds, self.models.journal, **options)

    @property
    def watchdog(self) -> m.Ref:
        return self.supervision.watchdog

    # ---- how things move

    def settle(self, order: int) -> None:
        self.stage.drain(order)

    def sample(self) -> None:
        if not self.watchdog.is_alive():
            return
        actor = self.stage.actor(self.watchdog)
        sample = self.host.sample(actor._tracked)
        self.judge.taken(sample)
        self.watchdog.tell(_Taken(sample))

    def tell(self, make: Any, what: str, ends: tuple[type, ...], order: int | None, model: str = "") -> Any:
        answer = self.fakes.Answer(self.stage, what, ends)
        answer.model = model
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
        self.chat(name, order if rest else None)

    def chat(self, name: str, order: int | None = 0) -> Any:
        number = f"chat-{len(self.chats)}-{name}"
        self.chats[number] = answer = self.fakes.Answer(self.stage, number)
        answer.model = name
        m.tell(self.supervisor, m.Chat(number, name, self.fakes.CHAT, answer))
        if order is not None:
            self.settle(order)
        return answer

    @precondition(lambda self: self.open_chats())
    @rule(number=picks, order=orders, rest=at_rest)
    def someone_goes(self, number: int, order: int, rest: bool) -> None:
        name = self.open_chats()[number % len(self.open_chats())]
        self.chats[name].closed = True
        m.tell(self.supervisor, m.Cancel(name, self.chats[name].model))
        if rest:
            self.settle(order)

    def open_chats(self) -> list[str]:
        return [name for name, answer in self.chats.items() if not answer.ended and not answer.closed]

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
            worker.poisoned = how
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

    @precondition(lambda self: any(worker.dead for worker in self.host.workers))
    @rule(number=picks, what=st.sampled_from(["ready", "step", "trimmed", "error"]), order=orders)
    def a_dead_worker_is_heard(self, number: int, what: str, order: int) -> None:
        """What it had said before its end may be handled after it."""
        worker = self.pick([worker for worker in self.host.workers if worker.dead], number)
        said = {
            "ready": p.Ready(self.fakes.INFO),
            "step": p.Step([], [(name, "stop", p.Usage(1, 1)) for name in self.chats]),
            "trimmed": p.Trimmed(77, 77),
            "error": p.EngineError("memory", "told to"),
        }
        self.settle(order)
        endings = sum(answer.ended for answer in self.chats.values())
        worker.say(said[what])
        self.settle(order)
        assert sum(answer.ended for answer in self.chats.values()) == endings

    @precondition(lambda self: self.boss.late)
    @rule(number=picks, order=orders)
    def a_former_life_is_heard(self, number: int, order: int) -> None:
        """What a life that is over has said changes nothing any more."""
        self.settle(order)
        before = self.known()
        late = self.boss.late[number % len(self.boss.late)]
        m.tell(self.supervisor, late)
        self.settle(order)
        assert self.known() == before, f"a late {type(late).__name__} changes something: {late}"

    def known(self) -> Any:
        """What the Supervisor goes by, as far as it can be compared."""
        records = [
            (record.status, record.need, record.hung, len(record.waiting), len(record.loads), len(record.unloads))
            for record in self.boss._records
        ]
        admission = self.boss._admission
        running = admission.cleanups.running
        items = [len(answer.items) for answer in (*self.chats.values(), *self.answers)]
        return (
            records,
            [load.model for load in admission._loads],
            set(admission.pending_unloads._open),
            running and (running.reason, set(running.waiting)),
            items,
            [worker.told for worker in self.host.alive],
        )

    # ---- memory and time

    @rule(percent=st.sampled_from([5, 30, 50, 70, 84, 86, 91, 96, 99]), samples=st.integers(0, 2), order=orders)
    def others_use(self, percent: int, samples: int, order: int) -> None:
        self.host.others_bytes = percent * GIB
        for _ in range(samples):
            self.sample()
        self.settle(order)

    @rule(
        percents=st.lists(raws, min_size=1, max_size=3), for_s=st.sampled_from([0.0, 1.0, 3.0, 9.0, 12.0]), order=orders
    )
    def memory_jumps(self, percents: list[int], for_s: float, order: int) -> None:
        """Others come and go, so that together with the workers just this much of memory is used."""
        for percent in percents:
            self.memory_is(percent, order)
            self.wait(for_s, 0.5, order)

    def memory_is(self, percent: int, order: int = 0) -> None:
        held = self.host.used_bytes() - self.host.others_bytes
        self.host.others_bytes = max(0, percent * GIB - held)
        self.sample()
        self.settle(order)

    @rule(
        name=st.sampled_from(["small", "middle", "pinned", "fleeting"]),
        first=st.sampled_from([99, 96, 88]),
        obeys=st.booleans(),
        then=raws,
        for_s=st.sampled_from([0.0, 1.0, 3.0, 12.0]),
        order=orders,
    )
    def memory_is_short_twice(self, *, name: str, first: int, obeys: bool, then: int, for_s: float, order: int) -> None:
        """And in between, while the level of the first time is held still, a model is loaded and answers."""
        self.memory_is(first)
        for worker in self.host.alive if obeys else ():
            if worker.told:
                worker.die(-9)
        self.settle(order)
        self.host.others_bytes = 5 * GIB
        self.wait(1.0, 0.5, order)
        self.chat(name, order)
        for _ in range(2):
            self.wait(0.5, 0.1, order)
            for worker in self.loading():
                if worker.name == name and not isinstance(worker.commands[0], p.FetchModel):
                    worker.get_ready(worker.granted - NEEDS[name][-1].kv_bytes)
        self.settle(order)
        self.memory_is(then)
        self.wait(for_s, 0.5, order)

    @precondition(lambda self: any(worker.open for worker in self.serving()))
    @rule(
        number=picks,
        percent=st.sampled_from([96, 99]),
        goes=st.booleans(),
        stays_s=st.sampled_from([0.0, 3.0]),
        order=orders,
    )
    def a_busy_model_is_asked_while_memory_is_short(
        self, *, number: int, percent: int, goes: bool, stays_s: float, order: int
    ) -> None:
        """And then memory is back: whatever was on its way to the model meanwhile is not lost."""
        name = self.pick([worker for worker in self.serving() if worker.open], number).name
        self.memory_is(percent, order)
        self.stage.advance(0.1, order)
        self.sample()
        asked = [self.chat(name, None), self.chat(name, None)]
        if goes:
            asked[0].closed = True
            m.tell(self.supervisor, m.Cancel(asked[0].what, name))
        self.settle(order)
        self.wait(stays_s, 0.5, order)
        self.memory_is(40, order)

    @rule(endless=st.booleans(), order=orders)
    def all_is_well_for_a_minute(self, endless: bool, order: int) -> None:
        """Memory is free and workers work: nobody waits for ever.

        With ``endless`` one answer goes on and on and its model has been told to leave when it is done; that concerns
        nobody whose model has room beside it.
        """
        self.settle(order)
        self.host.others_bytes = GIB
        busy = [worker for worker in self.serving() if worker.open and not worker.told]
        stays = busy[0] if endless and busy else None
        if stays:
            self.unload(stays.name, 3600.0, order)
        waits = [one for one in (*self.chats.values(), *self.answers) if not one.ended and self.has_room(one, stays)]
        asked = None
        for second in range(60):
            self.be_good(stays)
            if second == 2 and not stays and self.can_be_asked("small"):
                asked = self.chat("small")
            if second == 2 + SOON_S:
                assert asked is None or asked.ended, f"{asked.what} waits though memory is free: {asked.items}"
            if second >= 2 + SOON_S and all(one.ended for one in waits):
                return
        for one in waits:
            assert one.ended, f"{one.what} waits for ever though memory is free: {one.items}"

    def can_be_asked(self, name: str) -> bool:
        """Whether a request would be answered as soon as there is room, as far as the model itself goes."""
        record = self.boss._records.get(name)
        return record is None or record.status.state in (State.COLD, State.READY, State.BUSY)

    def has_room(self, answer: Any, stays: Any) -> bool:
        """Whether the model that is asked for fits beside ``stays``, whatever is pinned."""
        if stays is None or not answer.model:
            return True
        pinned = {name for name, is_pinned in self.pins.items() if is_pinned} - {answer.model}
        room = 92 * GIB - stays.granted - sum(NEEDS[name][0].total_bytes for name in pinned)
        return answer.model != stays.name and NEEDS[answer.model][-1].total_bytes < room

    @rule(
        seconds=st.sampled_from([0.1, 1.0, 4.0, 11.0, 25.0]),
        every_s=st.sampled_from([0.5, 0.1, 100.0]),
        order=orders,
    )
    def time_passes(self, seconds: float, every_s: float, order: int) -> None:
        self.wait(seconds, every_s, order)

    def wait(self, seconds: float, every_s: float, order: int) -> None:
        every_s = max(every_s, seconds / 50)
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
            (ModelStatus, Failed),
            order if rest else None,
            name,
        )

    @rule(name=names, grace_s=st.sampled_from([0.0, 5.0, 60.0, 3600.0]), order=orders, rest=at_rest)
    def an_unload_is_asked_for(self, name: str, grace_s: float, order: int, rest: bool) -> None:
        self.unload(name, grace_s, order if rest else None)

    def unload(self, name: str, grace_s: float, order: int | None) -> None:
        def make(answer: Any) -> m.UnloadModel:
            self.judge.unloads.append((name, self.stage.time + grace_s, answer))
            return m.UnloadModel(name, answer, grace_s)

        self.tell(make, f"UnloadModel({name})", (ModelStatus, Failed), order, name)

    @rule(name=names, seconds=st.sampled_from([None, 0.0, 5.0, 60.0]), order=orders, rest=at_rest)
    def it_is_to_be_kept_alive(self, name: str, seconds: float | None, order: int, rest: bool) -> None:
        m.tell(self.supervisor, m.KeepAlive(name, seconds))
        if rest:
            self.settle(order)

    @rule(aggressive=st.booleans(), order=orders, rest=at_rest)
    def a_clean_up_is_asked_for(self, aggressive: bool, order: int, rest: bool) -> None:
        def make(answer: Any) -> m.CleanUpModels:
            answer.aggressive = aggressive
            self.judge.cleanups.append(answer)
            return m.CleanUpModels(answer, aggressive)

        self.tell(
            make,
            f"CleanUpModels({aggressive=})",
            (CleanupReport, Failed),
            order if rest else None,
        )

    @rule(name=st.sampled_from(PINNABLE), pinned=st.booleans(), order=orders, rest=at_rest)
    def a_pin_is_asked_for(self, name: str, pinned: bool, order: int, rest: bool) -> None:
        self.pins[name] = pinned
        self.tell(
            lambda answer: m.PinModel(name, pinned, answer),
            f"PinModel({name}, {pinned=})",
            (ModelStatus, Failed),
            order if rest else None,
        )

    @rule(
        name=names,
        files=st.sampled_from(["", "other"]),
        drain_s=st.sampled_from([0.0, 5.0, 3600.0]),
        order=orders,
        rest=at_rest,
    )
    def the_configuration_changes(self, name: str, files: str, drain_s: float, order: int, rest: bool) -> None:
        self.catalog = self.catalog.with_files(name, files)
        self.tell(
            lambda answer: m.Reconfigure(
                self.catalog, Settings(THRESHOLDS, None, 4, GRACE_S, PATIENCE_S), drain_s, answer
            ),
            f"Reconfigure({name}, {files=}, {drain_s=})",
            (type(None),),
            order if rest else None,
        )

    @rule(clean_up=st.booleans(), order=orders)
    def the_health_is_asked_for(self, clean_up: bool, order: int) -> None:
        answer = self.tell(lambda answer: m.GetStatus(answer, clean_up), "GetStatus", (Status,), order)
        assert answer.ended

    @precondition(lambda self: self.boss._records)
    @rule(number=picks, order=orders, rest=at_rest)
    def an_actor_fails(self, number: int, order: int, rest: bool) -> None:
        records = list(self.boss._records)
        m.tell(records[number % len(records)].ref, self.fakes.Bug())
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
        assert not self.stage.broken, self.stage.broken[0]

    @invariant()
    def no_worker_is_an_orphan(self) -> None:
        known = {id(actor._worker._worker) for actor in self.stage.actors if hasattr(actor, "_worker")}
        assert {id(worker) for worker in self.host.alive if worker.told != "kill"} <= known

    @invariant()
    def no_grant_is_forgotten(self) -> None:
        if not self.stage.at_rest:
            return
        for worker in self.host.alive:
            if not worker.told:
                assert self.boss._records.get(worker.name).seat().reserved_bytes == worker.granted, worker.name

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

    def be_good(self, stays: Any = None) -> None:
        """One second in which every worker does what it is there for; what ``stays`` answers has no end."""
        for worker in self.host.alive:
            if worker is stays and not worker.told:
                worker.step()
            elif worker.told:
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
        status = self.tell(m.GetStatus, "GetStatus", (Status,), 0).ending
        assert status.admission == "open"
        pinned = {name for name, is_pinned in self.pins.items() if is_pinned}
        assert status.pinned == pinned
        assert {one.name for one in status.models if one.pinned and one.state == State.READY} == pinned
        last = self.chat("small")
        for _ in range(10):
            self.be_good()
        assert isinstance(last.ending, Finished)
        self.nothing_is_broken()

    def the_server_stops(self) -> None:
        self.judge.stopping_at = self.stage.time + 3.0
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
@pytest.mark.timeout(max(300, 2 * EXAMPLES))
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
