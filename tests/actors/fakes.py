"""Actors without threads, workers without processes, memory without bytes: what happens next is the test's to say."""

import copy
import random
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pykka

from plimsoll.actors import messages as m
from plimsoll.actors.memory_view import Gauge
from plimsoll.actors.model import ModelActor, ModelSettings
from plimsoll.actors.replies import Failed, Finished
from plimsoll.actors.settings import Settings
from plimsoll.actors.spare_worker import SpareWorker
from plimsoll.actors.status import LiveUsage
from plimsoll.actors.supervisor import Supervisor
from plimsoll.actors.timers import Timer
from plimsoll.actors.worker_life import Effects, OnWeighed
from plimsoll.catalog.entries import CatalogModel
from plimsoll.catalog.source import ModelSource
from plimsoll.engine import protocol as p
from plimsoll.engine.handle.process import NOT_STARTED, OnEvent, OnExit, Started
from plimsoll.errors import UnknownModel
from plimsoll.journal.journal import Journal
from plimsoll.memory.ledger import Need
from plimsoll.memory.levels import Thresholds
from plimsoll.memory.sample import Level, Reading, Sample, Tracked
from plimsoll.memory.sources import Activity

GIB = 1024**3
INFO = p.ModelInfo(context=4096, vocab_size=100, weights_bytes=GIB, device="fake", dtype="float32")
_RULES = ("pin", "idle_ttl_s")
CHAT = p.ChatRequest([{"role": "user", "content": "hello"}])


class Bug(m.Message, frozen=True):
    """No actor knows this message, so handling it raises."""


class Answer:
    """A Reply that keeps what came; a second ending, or anything after an ending, breaks the stage's rules."""

    def __init__(self, stage: "Stage", what: str, ends: tuple[type, ...] = (Finished, Failed)) -> None:
        self.what = what
        self.items: list[Any] = []
        # As of the front end's reply: nobody reads any more.
        self.closed = False
        self.closed_at_rest = False
        self._stage = stage
        self._ends = ends

    def send(self, item: Any) -> None:
        if self.ended:
            self._stage.broken.append(f"{self.what} had ended and got {item!r}")
        self.items.append(item)

    @property
    def ended(self) -> bool:
        return any(isinstance(item, self._ends) for item in self.items)

    @property
    def ending(self) -> Any:
        """The ending; fails if there is none yet."""
        assert self.ended, f"{self.what} has no ending: {self.items}"
        return self.items[-1]


class _ByHand:
    """A pykka actor type whose loop is the stage's."""

    stage: "Stage"

    def _start_actor_loop(self) -> None:
        self.stage.actors.append(self)
        self._actor_loop_setup()


class Stage:
    """Time, timers, and every actor with its mailbox; one message is handled at a time, in an order that is drawn."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.actors: list[Any] = []
        self.tasks: list[Callable[[], object]] = []
        self.broken: list[str] = []
        self.handling: Any = None
        self.after_each: Callable[[], object] = lambda: None
        # With the actor that has handled a message; and when no message is left.
        self.on_handled: Callable[[Any], object] = lambda _actor: None
        self.on_rest: Callable[[], object] = lambda: None
        self._due: list[tuple[float, Timer]] = []

    # ---- timers

    def now(self) -> float:
        return self.time

    def tell_later(self, delay_s: float, ref: m.Ref, message: Any) -> Timer:
        timer = Timer(ref, message)
        self._due.append((self.time + delay_s, timer))
        return timer

    def advance(self, seconds: float, order: int = 0) -> None:
        """Let time pass; whatever falls due is told and handled at its own moment."""
        until = self.time + seconds
        while due := min((one for one in self._due if one[0] <= until), key=lambda one: one[0], default=None):
            self._due.remove(due)
            self.time = max(self.time, due[0])
            due[1].fire()
            self.drain(order)
        self.time = until

    # ---- actors

    def start(self, kind: type, *args: Any, **options: Any) -> m.Ref:
        return type(kind.__name__, (_ByHand, kind), {"stage": self}).start(*args, **options)

    def actor(self, ref: m.Ref) -> Any:
        return next(actor for actor in self.actors if actor.actor_ref == ref)

    @property
    def at_rest(self) -> bool:
        return not self.tasks and all(actor.actor_inbox.empty() for actor in self.actors)

    def drain(self, order: int = 0) -> None:
        """Handle messages until none is left; ``order`` 0 takes the actors in turn, others at random."""
        chance = random.Random(order)
        for _ in range(20_000):
            ready = [actor for actor in self.actors if not actor.actor_inbox.empty()]
            if not ready and not self.tasks:
                self.on_rest()
                return
            choice = chance.randrange(len(ready) + bool(self.tasks)) if order else 0
            if choice < len(ready):
                self._handle(ready[choice])
            else:
                self.tasks.pop(0)()
            self.after_each()
        raise AssertionError("the actors never come to rest")

    def _handle(self, actor: Any) -> None:
        envelope = actor.actor_inbox.get()
        self.handling = envelope.message
        try:
            answer = actor._handle_receive(envelope.message)
        except Exception as error:  # noqa: BLE001 - as in pykka's own loop
            if not isinstance(envelope.message, Bug):
                self.broken.append(f"{type(actor).__name__} failed on {envelope.message}: {error!r}")
            actor._handle_failure(*sys.exc_info())
            actor.on_failure(*sys.exc_info())
        else:
            if envelope.reply_to:
                envelope.reply_to.set(answer)
        self.on_handled(actor)
        if actor.actor_stopped.is_set():
            # As pykka does it: what is left in a dead actor's mailbox is lost.
            self.actors.remove(actor)

    def close(self) -> None:
        for actor in self.actors:
            pykka.ActorRegistry.unregister(actor.actor_ref)
            actor.actor_stopped.set()


class FakeWorker:
    """A worker that does what the test says, when the test says so."""

    def __init__(self, host: "Host", pid: int, on_event: OnEvent, on_exit: OnExit) -> None:
        self.number = pid
        self.pid: int | None = None if host.starts_later or host.starts_as_task else pid
        self.more_pids: tuple[int, ...] = ()
        self.host = host
        self.commands: list[p.Command] = []
        self.open: dict[str, int] = {}
        self.cancelled: set[str] = set()
        self.bytes = host.process_bytes
        self.ready = self.dead = False
        self.told = self.poisoned = ""
        self.granted = 0
        self.did = Activity(0.0)
        self._on_event, self._on_exit = on_event, on_exit

    @property
    def name(self) -> str:
        return self.commands[0].source.name

    # ---- what the actor does to it

    def send(self, command: p.Command) -> None:
        if self.dead:
            return
        self.commands.append(command)
        match command:
            case p.LoadModel() | p.FetchModel():
                self.host.on_load(self)
            case p.Generate():
                self.host.on_generate(self, command)
                self.open[command.id] = len(command.so_far)
            case p.CancelRequest():
                self.cancelled.add(command.id)
            case p.Shutdown():
                self._told("shutdown")

    def terminate(self) -> None:
        self._told("term")

    def kill(self) -> None:
        self._told("kill")

    def hand_over(self, on_event: OnEvent, on_exit: OnExit) -> None:
        self._on_event, self._on_exit = on_event, on_exit
        if self.dead:
            on_exit(-9, False)

    def _told(self, how: str) -> None:
        if not self.dead:
            self.host.on_told(self, how)
            self.told = how

    # ---- what the test has it do

    def start(self) -> None:
        """There is a process now, where the host starts them later; whoever was told to end before does so at once."""
        if self.dead:
            return
        self.pid = self.number
        if self.told in ("term", "kill"):
            self.die({"term": -15, "kill": -9}[self.told])
        else:
            self._on_event(Started())

    def say(self, event: p.Event) -> None:
        self._on_event(event)

    def get_ready(self, held_bytes: int | None = None) -> None:
        self.ready = True
        self.bytes = self.bytes if held_bytes is None else held_bytes
        self.say(p.Ready(INFO))

    def step(self, finish: Sequence[str] = ()) -> None:
        """One token for every request; those in ``finish``, and cancelled ones, end."""
        texts, endings, tokens = [], [], []
        for name in list(self.open):
            if name in self.cancelled or name in finish:
                reason = "cancelled" if name in self.cancelled else "stop"
                endings.append((name, reason, p.Usage(1, self.open.pop(name))))
            else:
                self.open[name] += 1
                texts.append((name, f"{self.open[name]} ", self.open[name]))
                tokens.append((name, self.open[name]))
        self.say(p.Step(texts, endings, tokens=tokens))

    def die(self, code: int, *, oom_killed: bool = False, returns_in_s: float = 0.0) -> None:
        """End; its memory is back ``returns_in_s`` seconds later."""
        self.host.on_death(self, code, oom_killed)
        self.dead = True
        self.open.clear()
        self.host.buried(self, returns_in_s)
        self._on_exit(code, oom_killed)


class Host:
    """The memory of a machine: what others use, what workers hold, and what the dead have not given back yet."""

    process_bytes = GIB // 4

    def __init__(self, stage: Stage, total_bytes: int = 100 * GIB) -> None:
        self.stage = stage
        self.total_bytes = total_bytes
        self.others_bytes = 10 * GIB
        self.workers: list[FakeWorker] = []
        self.on_told: Callable[[FakeWorker, str], object] = lambda _worker, _how: None
        self.on_load: Callable[[FakeWorker], object] = lambda _worker: None
        self.on_generate: Callable[[FakeWorker, p.Generate], object] = lambda _worker, _command: None
        self.on_death: Callable[[FakeWorker, int, bool], object] = lambda _worker, _code, _oom_killed: None
        self.can_not_spawn = False
        # Processes start when the test says so, or as the background's task.
        self.starts_later = self.starts_as_task = False
        # The memory is a GPU's; then the host has 32 GiB, and each worker a quarter of one there.
        self.on_gpu = False
        self._ghosts: list[tuple[float, int]] = []
        self.samples: tuple[Sample, ...] = ()

    @property
    def alive(self) -> list[FakeWorker]:
        return [worker for worker in self.workers if not worker.dead]

    @property
    def newest(self) -> FakeWorker:
        return self.workers[-1]

    def spawn(self, on_event: OnEvent, on_exit: OnExit) -> FakeWorker:
        worker = FakeWorker(self, 1001 + len(self.workers), on_event, on_exit)
        if self.can_not_spawn:
            worker.dead = True
            on_event(p.LoadError("load", "no worker process can be started: no more processes"))
            on_exit(NOT_STARTED, False)
        else:
            self.workers.append(worker)
            if self.starts_as_task:
                self.stage.tasks.append(worker.start)
        return worker

    def activity(self, pid: int) -> Activity | None:
        return next((worker.did for worker in self.alive if worker.pid == pid), None)

    def buried(self, worker: FakeWorker, returns_in_s: float) -> None:
        self._ghosts.append((self.stage.time + returns_in_s, worker.bytes))

    def used_bytes(self) -> int:
        ghosts = sum(size for until, size in self._ghosts if until > self.stage.time)
        return min(self.total_bytes, self.others_bytes + ghosts + sum(worker.bytes for worker in self.alive))

    def sample(self, tracked: Sequence[Tracked] = ()) -> Sample:
        pids = {one.pid for one in tracked}
        footprints = {worker.pid: worker.bytes for worker in self.alive if worker.pid in pids}
        readings = (Reading("host", self.total_bytes, self.used_bytes()),)
        sample = Sample(self.stage.time, readings, footprints=footprints)
        if self.on_gpu:
            gpu = Reading("accelerator:0", self.total_bytes, self.used_bytes())
            host = Reading("host", 32 * GIB, 4 * GIB + len(self.alive) * GIB // 4)
            held = {pid: size + GIB // 4 for pid, size in footprints.items()}
            sample = Sample(self.stage.time, (host, gpu), footprints=held, device_bytes=footprints)
        self.samples = (*(one for one in self.samples if one.time_s > sample.time_s - 3.0), sample)
        return sample


class Models:
    """A catalog of fake models and the way to start their actors; ``here`` are those whose files were fetched."""

    def __init__(
        self, stage: Stage, host: Host, needs: dict[str, tuple[Need, ...]], **settings: dict[str, Any]
    ) -> None:
        self.needs = needs
        self.here = set(needs)
        self.journal = Journal()
        self.gauge = Gauge()
        self.host = host
        self.unweighable = ""
        self.on_a_dead_disk: set[str] = set()
        self.never: list[OnWeighed] = []
        self.sources: dict[str, str] = {}
        self.settings = settings
        self._stage = stage
        self.on_start: Callable[[str], object] = lambda _name: None

    def find(self, name: str) -> Any:
        if name not in self.needs:
            raise UnknownModel(f"there is no model {name}")
        rules = {key: value for key, value in self.settings.get(name, {}).items() if key in _RULES}
        return CatalogModel(ModelSource(name, "fake", self.sources.get(name, "")), **rules)

    def problems(self) -> list[str]:
        return []

    def with_files(self, name: str, files: str) -> "Models":
        """The catalog of a configuration in which ``name`` has other files."""
        changed = copy.copy(self)
        changed.sources = self.sources | {name: files}
        return changed

    def pinned(self) -> list[str]:
        return [name for name, settings in self.settings.items() if settings.get("pin")]

    def start(self, model: CatalogModel, rules: m.Rules, supervisor: m.Ref, usage: LiveUsage) -> m.Ref:
        name = model.source.name
        self.on_start(name)
        more = {key: value for key, value in self.settings.get(name, {}).items() if key not in _RULES}
        settings = ModelSettings(model.source, p.EngineOptions("/nowhere"), rules, usage, **more)

        def weigh(on_weighed: OnWeighed) -> None:
            def answer() -> None:
                if name in self.on_a_dead_disk:
                    self.never.append(on_weighed)
                    return
                on_weighed(self.needs[name] if name in self.here else (), self.unweighable)

            self._stage.tasks.append(answer)

        effects = Effects(
            self.host.spawn,
            self._stage,
            self.journal,
            weigh,
            lambda: self.host.samples,
            self.host.activity,
            self.gauge,
        )
        return self._stage.start(ModelActor, settings, supervisor, effects)


class Mailbox(pykka.ThreadingActor):
    """An actor that only listens."""

    use_daemon_thread = True

    def on_receive(self, message: Any) -> None:
        pass


class NoSupervision:
    """Nobody looks after the Watchdog, whose samples are the test's."""

    silent_s = 0.0

    def __init__(self, stage: Stage) -> None:
        self.watchdog = stage.start(Mailbox)

    def check_later(self, _owner: m.Ref) -> None:
        pass

    def heard(self) -> None:
        pass

    def follow(self, settings: Settings) -> None:
        m.tell(self.watchdog, m.Marks(settings))


def supervisor(stage: Stage, models: Models, kind: type[Supervisor] = Supervisor, **changes: Any) -> m.Ref:
    """A Supervisor of those models; ``changes`` are of its arguments."""
    plain = {
        "start_model": models.start,
        "on_external": lambda _sample: None,
        "on_settled": lambda _name, _dense, _held: None,
        "spare": SpareWorker(models.host.spawn, lambda _model: False),
        "clock": stage.now,
    }
    settings = Settings(
        Thresholds(),
        None,
        changes.pop("queue", 4),
        critical_grace_s=changes.pop("critical_grace_s", 10.0),
        patience_s=changes.pop("patience_s", 0.0),
        preempt=changes.pop("preempt", False),
    )
    # Not among the others: it starts an actor of its own.
    supervision = changes.pop("supervision", None) or NoSupervision(stage)
    ref = stage.start(kind, models, settings, models.journal, supervision=supervision, **plain | changes)
    # Its thread would have Python's collector go through all that the tests hold, again and again.
    stage.actor(ref)._admission.cleanups._collect = lambda: None
    return ref


def look_for_loads(stage: Stage, boss: m.Ref, host: "Host") -> None:
    """Stand in for a Watchdog that looks at once when a load waits."""
    supervisor = stage.actor(boss)

    def look() -> None:
        if supervisor._admission._loads and supervisor._memory_view.sample.time_s < stage.time:
            m.tell(boss, m.Sampled(host.sample(supervisor._footprints.tracked.workers), Level.NORMAL))

    stage.after_each = look
