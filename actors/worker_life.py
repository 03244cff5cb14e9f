"""The lives of one model's worker process: generations, and the way from a request to stop to a kill."""

import signal
from collections.abc import Callable
from typing import Literal, NamedTuple

from plimsoll.actors.hang_watch import Hung
from plimsoll.actors.messages import FromWorker, HostFigures, Message, Ref, WorkerExited, tell
from plimsoll.actors.timers import Timers
from plimsoll.engine.process import SpawnWorker, Worker
from plimsoll.engine.protocol import (
    Command,
    EngineError,
    Event,
    FetchModel,
    HostMemory,
    LoadError,
    LoadModel,
    Shutdown,
    Trimmed,
)
from plimsoll.journal import events
from plimsoll.journal.journal import Journal
from plimsoll.memory.plan import Need
from plimsoll.memory.sources import Activity, activity

OnWeighed = Callable[[tuple[Need, ...], str], object]
"""Called with the ways to load a model (none while its files are not here) and an error, empty if there is none."""

# How long an orderly Shutdown may take before the worker gets SIGTERM.
_SHUTDOWN_S = 1.0
# What a killed process gets to be gone; the kernel takes seconds for the memory of a large one. Past that it is in an
# uninterruptible sleep (a dead disk, a driver), which may last for ever.
GIVE_UP_S = 30.0


class Effects(NamedTuple):
    """What a ModelActor reaches the world with; ``weigh`` answers later, from another thread.

    ``activity`` counts what a process does, at once and without waiting for it.
    """

    spawn: SpawnWorker
    timers: Timers
    journal: Journal
    weigh: Callable[[OnWeighed], object]
    activity: Callable[[int], Activity | None] = activity


class Escalate(Message, frozen=True):
    """Timer: the worker of this generation was told to stop a while ago."""

    generation: int
    step: Literal["term", "kill", "give up"]


class WorkerLife:
    """At most one worker at a time; owned by one ModelActor, whose mailbox hears of its events and its exit.

    ``last_words`` say why it is about to end, ``mlx_bytes`` is what it held when its caches were last trimmed,
    ``hosts`` are those of a group by their names.
    """

    def __init__(self, name: str, owner: Ref, effects: Effects, stop_grace_s: float) -> None:
        self._name = name
        self._journal = effects.journal
        self._owner = owner
        self._spawn = effects.spawn
        self._timers = effects.timers
        self._stop_grace_s = stop_grace_s
        self._generation = 0
        self._worker: Worker | None = None
        self.last_words: LoadError | EngineError | Hung | None = None
        self.mlx_bytes = 0
        self.hosts: dict[str, HostFigures] = {}

    @property
    def pid(self) -> int | None:
        return self._worker.pid if self._worker else None

    @property
    def more_pids(self) -> tuple[int, ...]:
        """The other processes of a group, here."""
        return self._worker.more_pids if self._worker else ()

    def start(self, load: LoadModel | FetchModel, spare: Worker | None = None) -> None:
        """Start the next generation, from the ``spare`` one if there is one, and have it load or fetch.

        Raises ``OSError`` when no process can be made.
        """
        self.last_words = None
        self.hosts = {}
        self._generation += 1
        generation, owner = self._generation, self._owner

        def on_event(event: Event) -> None:
            tell(owner, FromWorker(generation, event))

        def on_exit(code: int, oom_killed: bool) -> None:
            tell(owner, WorkerExited(generation, code, oom_killed))

        if spare is None:
            self._worker = self._spawn(on_event, on_exit)
        else:
            self._worker = spare
            spare.hand_over(on_event, on_exit)
        self._worker.send(load)

    def is_current(self, generation: int) -> bool:
        """Whether what this generation says still matters."""
        return self._worker is not None and generation == self._generation

    def send(self, command: Command) -> None:
        if self._worker:
            self._worker.send(command)

    def on_trimmed(self, event: Trimmed) -> None:
        self.mlx_bytes = event.active_bytes + event.cache_bytes

    def on_host_memory(self, event: HostMemory) -> None:
        """What one of a group's hosts says of itself: its fullest source counts."""
        name, total, used = max(event.readings, key=lambda one: one[2] / one[1])
        self.hosts[event.host] = HostFigures(event.host, name, total, used)

    def on_load_error(self, event: LoadError) -> None:
        self.last_words = event

    def on_engine_error(self, event: EngineError) -> None:
        """It should exit by itself, but a poisoned engine is not trusted with that."""
        self.last_words = event
        self.kill()

    def stop(self, *, hard: bool) -> bool:
        """End it: orderly, then by SIGTERM, then by SIGKILL; ``hard`` skips the orderly part. False: none is there."""
        if self._worker is None:
            return False
        if hard:
            self._terminate()
        else:
            self._worker.send(Shutdown())
            self._escalate_in(_SHUTDOWN_S, "term")
        return True

    def escalate(self, message: Escalate) -> None:
        """It is still there."""
        if self._worker is None or message.generation != self._generation:
            return
        match message.step:
            case "term":
                self._terminate()
            case "kill":
                self._journal.record(events.WorkerKilled(self._name, self._worker.pid))
                self.kill()
            case "give up":
                tell(self._owner, WorkerExited(self._generation, -signal.SIGKILL, stuck_pid=self._worker.pid))

    def kill(self) -> None:
        """SIGKILL; the exit is still told, with the pid as ``stuck_pid`` if even that does not end it."""
        if self._worker:
            self._worker.kill()
            self._escalate_in(GIVE_UP_S, "give up")

    def ended(self) -> None:
        """Its exit was told."""
        self._worker = None

    def _terminate(self) -> None:
        if self._worker:
            self._worker.terminate()
            self._escalate_in(self._stop_grace_s, "kill")

    def _escalate_in(self, delay_s: float, step: Literal["term", "kill", "give up"]) -> None:
        self._timers.tell_later(delay_s, self._owner, Escalate(self._generation, step))
