"""The worker processes of one model, one after the other: their start, their stop by three steps, and their loads."""

import signal
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from plimsoll.actors.hang_detection import Hung
from plimsoll.actors.memory_view import Gauge
from plimsoll.actors.messages import FromWorker, Message, Ref, WorkerExited, tell
from plimsoll.actors.status import HostFigures
from plimsoll.actors.timers import Timers
from plimsoll.engine.handle.process import SpawnWorker, Started, Worker
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
from plimsoll.memory.death_evidence import Death
from plimsoll.memory.ledger import Need
from plimsoll.memory.sample import Sample
from plimsoll.memory.sources import Activity
from plimsoll.memory.sources.processes import activity

OnWeighed = Callable[[tuple[Need, ...], str], object]
"""Called with the ways to load a model (none while its files are not here), and an error or the empty string."""

# How long an orderly Shutdown may take before the worker gets SIGTERM; the worker writes to disk for up to a second.
_SHUTDOWN_S = 2.0
# How long a killed process may take to be gone; freeing a large one takes the kernel seconds. Past that the process is
# in an uninterruptible sleep (a dead disk, a driver), which may last for ever.
GIVE_UP_S = 30.0


class Effects(NamedTuple):
    """The side effects of a ModelActor, so that tests can replace them; ``weigh`` answers later, from another thread.

    ``recent_samples`` returns the samples of the last seconds, in order. ``activity`` returns the counters of a process
    without blocking. ``gauge`` shows the newest sample's level.
    """

    spawn: SpawnWorker
    timers: Timers
    journal: Journal
    weigh: Callable[[OnWeighed], object]
    recent_samples: Callable[[], Sequence[Sample]] = tuple
    activity: Callable[[int], Activity | None] = activity
    gauge: Gauge = Gauge()


class Escalate(Message, frozen=True):
    """Timer: the worker of this generation was told to stop; take the next step if it still runs."""

    generation: int
    step: Literal["term", "kill", "give up"]


class WorkerLife:
    """At most one worker at a time; owned by one ModelActor, whose mailbox gets the worker's events and its exit.

    ``last_words`` is the error that the worker sent before its end, or the hang that it was killed for; ``mlx_bytes``
    is what MLX held when the caches were last trimmed; ``hosts`` maps the names of a group's hosts to their memory
    figures.
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
        self._granted_bytes = 0
        self.last_words: LoadError | EngineError | Hung | None = None
        self.mlx_bytes = 0
        self.hosts: dict[str, HostFigures] = {}

    @property
    def exists(self) -> bool:
        """Whether there is a worker; its process may not have started yet."""
        return self._worker is not None

    @property
    def pid(self) -> int | None:
        """None if there is no worker, or its process has not started."""
        return self._worker.pid if self._worker else None

    @property
    def generation(self) -> int:
        """The number of the present worker."""
        return self._generation

    @property
    def more_pids(self) -> tuple[int, ...]:
        """The other processes of a group on this host."""
        return self._worker.more_pids if self._worker else ()

    def start(self, load: LoadModel | FetchModel, granted_bytes: int, spare: Worker | None = None) -> None:
        """Start the next worker, or take over ``spare``, and have it load or fetch.

        ``granted_bytes`` is what all its ranks on this host may take together. The process starts in the background; it
        is owned here from this moment. Raises ``RuntimeError`` if no thread can be started.
        """
        self.last_words = None
        self.hosts = {}
        self._granted_bytes = granted_bytes
        self._generation += 1
        generation, owner = self._generation, self._owner

        def on_event(event: Event | Started) -> None:
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
        """Whether events of this generation still count."""
        return self._worker is not None and generation == self._generation

    def send(self, command: Command) -> None:
        if self._worker:
            self._worker.send(command)

    def on_trimmed(self, event: Trimmed) -> None:
        self.mlx_bytes = event.active_bytes + event.cache_bytes

    def on_host_memory(self, event: HostMemory) -> None:
        """Keep the fullest memory source of one of a group's hosts."""
        name, total, used = max(event.readings, key=lambda one: one[2] / one[1])
        self.hosts[event.host] = HostFigures(event.host, name, total, used)

    def on_load_error(self, event: LoadError) -> None:
        self.last_words = event

    def on_engine_error(self, event: EngineError) -> None:
        """Kill the worker: after such an error its engine can't be relied on to exit."""
        self.last_words = event
        self.kill()

    def stop(self, *, hard: bool) -> bool:
        """Stop by ``Shutdown``, then SIGTERM, then SIGKILL; ``hard`` begins with SIGTERM. False: no worker."""
        if self._worker is None:
            return False
        if hard:
            self._terminate()
        else:
            self._worker.send(Shutdown())
            self._escalate_in(_SHUTDOWN_S, "term")
        return True

    def escalate(self, message: Escalate) -> None:
        """Take the next step against a worker that still runs."""
        if self._worker is None or message.generation != self._generation:
            return
        match message.step:
            case "term":
                self._terminate()
            case "kill":
                self._journal.record(events.WorkerKilled(self._name, self._worker.pid or 0))
                self.kill()
            case "give up":
                tell(self._owner, WorkerExited(self._generation, -signal.SIGKILL, stuck_pid=self._worker.pid))

    def kill(self) -> None:
        """Send SIGKILL. ``WorkerExited`` still comes, with ``stuck_pid`` if the process does not end in time."""
        if self._worker:
            self._worker.kill()
            self._escalate_in(GIVE_UP_S, "give up")

    def ended(self, exit_: WorkerExited, samples: Sequence[Sample]) -> Death:
        """The worker has exited. Returns the evidence about its death, by the ``samples`` of its last seconds."""
        held_bytes = self._held_bytes(samples)
        self._worker = None
        return Death(exit_.code, exit_.oom_killed, held_bytes, self._granted_bytes)

    def outgrew(self, samples: Sequence[Sample]) -> bool:
        """Whether it held more than it was granted, in the ``samples`` of the last seconds."""
        return 0 < self._granted_bytes < self._held_bytes(samples)

    def _held_bytes(self, samples: Sequence[Sample]) -> int:
        pids = [pid for pid in (self.pid, *self.more_pids) if pid is not None]
        return max((sum(sample.footprints.get(pid, 0) for pid in pids) for sample in samples), default=0)

    def _terminate(self) -> None:
        if self._worker:
            self._worker.terminate()
            self._escalate_in(self._stop_grace_s, "kill")

    def _escalate_in(self, delay_s: float, step: Literal["term", "kill", "give up"]) -> None:
        self._timers.tell_later(delay_s, self._owner, Escalate(self._generation, step))
