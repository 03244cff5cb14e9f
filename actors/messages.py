"""The messages between actors, and between the front end and the actors: frozen, no logic.

| from | to | messages |
|---|---|---|
| http | Supervisor | Chat, Cancel, KeepAlive, GetStatus, LoadModel, UnloadModel, PinModel, CleanUpModels, PlanLoad |
| http | Supervisor | Reconfigure |
| the system | Supervisor | StopAll |
| Supervisor | ModelActor | Chat, Cancel, KeepAlive, Warm, Load, RefuseLoad, Unload, Rules, Pin, CountTokens |
| Supervisor | Watchdog | Subscribe, Track, Marks |
| ModelActor | Supervisor | LoadRequested, StateChanged, Stays, RanOutOfMemory, WorkerHangs, WorkerStuck |
| ModelActor | Supervisor | ChildStopped, Handback, Counted |
| worker reader thread | its ModelActor | FromWorker, WorkerExited |
| spare worker's reader thread | Supervisor | SpareExited |
| Watchdog | Supervisor | Sampled |
| Watchdog | Supervisor, every ModelActor | MemoryNormal, MemoryWarning, MemoryCritical, MemoryEmergency |
| timers | whoever set them | the message that was set |
"""

import enum
from typing import Any, Literal, Protocol

import msgspec
import pykka

from plimsoll.catalog import Catalog
from plimsoll.engine.process import Worker
from plimsoll.engine.protocol import Event, ModelInfo, Request, TokenLogprob, Usage
from plimsoll.errors import PlimsollError
from plimsoll.memory.levels import Thresholds
from plimsoll.memory.plan import Need, Seat
from plimsoll.memory.sample import Level, Sample, Tracked

Ref = pykka.ActorRef[Any]


class Message(msgspec.Struct, frozen=True):
    """Anything that goes into a mailbox."""


def tell(ref: Ref, message: Message) -> bool:
    """``tell`` that survives a dead addressee; False when it is dead."""
    try:
        ref.tell(message)
    except pykka.ActorDeadError:
        return False
    return True


# ---- replies: what comes back to the front end


class Waiting(Message, frozen=True):
    """No token yet. ``stage`` is queue, fetch, convert, read or prefill; ``total`` 0 means not known."""

    stage: str
    done: int = 0
    total: int = 0


class Delta(Message, frozen=True):
    """More text; ``tokens`` is the count generated so far; ``reasoning`` for what comes before the answer proper."""

    text: str
    tokens: int
    reasoning: bool = False


class Logprobs(Message, frozen=True):
    """The chosen tokens since the last one of these, where they were asked for."""

    tokens: list[TokenLogprob]


class ToolCallDelta(Message, frozen=True):
    """Part of tool call number ``index``; ``name`` comes with its first part, ``arguments`` are pieces of JSON."""

    index: int
    name: str = ""
    arguments: str = ""


class Vectors(Message, frozen=True):
    """The answer to an ``EmbedRequest``, before its ``Finished``: float32 rows, little-endian."""

    data: bytes
    dimensions: int


class Finished(Message, frozen=True):
    """An ending: ``reason`` is stop, length, tool_calls or cancelled; ``stop`` the client's stop string that it was."""

    reason: str
    usage: Usage
    stop: str | None = None


class Failed(Message, frozen=True):
    """An ending: the error says what happened and what to do."""

    error: PlimsollError


class Reply(Protocol):
    """Where answers go; the asyncio end of it lives in ``http/stream.py``.

    A request's reply gets any number of ``Waiting`` and ``Delta`` and exactly one ``Finished`` or ``Failed``.
    """

    def send(self, item: Any) -> None:
        """Hand over one item from any thread; never blocks, never raises."""


# ---- requests: http to Supervisor


class Chat(Message, frozen=True):
    """Answer ``request`` with ``model``. ``retried`` marks the one retry after a worker ran out of memory."""

    id: str
    model: str
    request: Request
    reply: Reply
    retried: bool = False


class Cancel(Message, frozen=True):
    """The client of request ``id`` is gone."""

    id: str
    model: str


class KeepAlive(Message, frozen=True):
    """Keep ``model`` loaded for ``seconds`` after its last use, None for ever, 0 unloads it as soon as it is idle.

    It holds until the model is unloaded; nothing happens for a model that is not loaded or loading.
    """

    model: str
    seconds: float | None


class GetStatus(Message, frozen=True):
    """Replied to with one ``Status``; ``clean_up`` starts the emergency clean-up first if memory is critically full."""

    reply: Reply
    clean_up: bool = False


class LoadModel(Message, frozen=True):
    """Replied to with ``Waiting`` while it loads, then ``ModelStatus`` or ``Failed``."""

    model: str
    reply: Reply


class UnloadModel(Message, frozen=True):
    """Replied to with ``ModelStatus`` (stopped) or ``Failed``. Running answers get ``grace_s`` to finish."""

    model: str
    reply: Reply
    grace_s: float


class PinModel(Message, frozen=True):
    """Pin ``model`` or not, whatever its entry says, until the server ends.

    Replied to with ``ModelStatus`` or ``Failed``. A pinned model is loaded whenever memory allows it.
    """

    model: str
    pinned: bool
    reply: Reply


class CleanUpModels(Message, frozen=True):
    """Replied to with one ``CleanupReport`` when everything that leaves has given its memory back, or ``Failed``."""

    reply: Reply
    aggressive: bool = False


class CleanupReport(Message, frozen=True):
    """What a clean-up did; bytes, and percent of memory used."""

    aggressive: bool
    reason: str
    unloaded: list[str]
    expected_bytes: int
    freed_bytes: int
    percent_before: float
    percent_after: float


class PlanLoad(Message, frozen=True):
    """Replied to with the ``Decision`` that a load would get now; nothing is done."""

    model: str
    needs: tuple[Need, ...]
    reply: Reply


class Reconfigure(Message, frozen=True):
    """The configuration was read again. Replied to with None as soon as everybody was told.

    Models that are gone or load from other files leave when their answers are done, at the latest in ``drain_s``.
    """

    catalog: Catalog
    thresholds: Thresholds
    limit_bytes: int | None
    queue: int
    critical_grace_s: float
    drain_s: float
    reply: Reply


class StopAll(Message, frozen=True):
    """The server stops: no new request, ``grace_s`` for running ones, then no worker is left. Replied to with None."""

    grace_s: float
    reply: Reply


# ---- Supervisor to ModelActor


class Load(Message, frozen=True):
    """Memory is granted for loading the model in this way; for fetching its files while they are not there.

    ``spare`` is a worker that waits to be used; whom this reaches owns it.
    """

    need: Need
    spare: Worker | None = None


class RefuseLoad(Message, frozen=True):
    error: PlimsollError


class Unload(Message, frozen=True):
    """Leave. ``if_idle`` leaves a model alone that has become busy or pinned since the decision.

    Running answers get ``grace_s`` to finish and end with ``error`` if they don't; so do waiting requests, unless
    ``hand_back`` says that the model's next life serves them.
    """

    reason: str
    grace_s: float = 0.0
    if_idle: bool = False
    error: PlimsollError | None = None
    hand_back: bool = False


class Rules(Message, frozen=True):
    """What of the configuration a model follows without being loaded again; times in seconds."""

    pin: bool
    idle_ttl_s: float | None
    queue: int
    critical_grace_s: float


class Warm(Message, frozen=True):
    """Load though no request waits."""


class Pin(Message, frozen=True):
    """Be pinned or not, whatever the settings say."""

    pinned: bool


class CountTokens(Message, frozen=True):
    """Say with ``Counted`` how many tokens were generated."""


# ---- ModelActor to Supervisor


class State(enum.StrEnum):
    COLD = "cold"
    LOADING = "loading"
    READY = "ready"
    BUSY = "busy"
    DRAINING = "draining"
    STOPPING = "stopping"
    STOPPED = "stopped"
    BACKOFF = "backoff"
    FAILED = "failed"


SERVING = frozenset({State.READY, State.BUSY})
LOADED = SERVING | {State.DRAINING}
LEAVING = frozenset({State.DRAINING, State.STOPPING, State.STOPPED})


class HostFigures(Message, frozen=True):
    """The fullest source of memory on one host of a group; bytes."""

    host: str
    source: str
    total: int
    used: int


class ModelStatus(Message, frozen=True):
    """One model as its actor sees it. Times are seconds on the monotonic clock.

    ``more_pids`` and ``hosts`` belong to a model that a group serves.
    """

    name: str
    state: State
    active: int = 0
    queued: int = 0
    pinned: bool = False
    pid: int | None = None
    last_used: float = 0.0
    idle_ttl_s: float | None = None
    stage: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    mlx_bytes: int = 0
    info: ModelInfo | None = None
    error: str = ""
    more_pids: tuple[int, ...] = ()
    hosts: tuple[HostFigures, ...] = ()


class SpareExited(Message, frozen=True):
    """A spare worker has ended; told also of one that was handed over in that moment."""

    pid: int


class StateChanged(Message, frozen=True):
    status: ModelStatus


class Counted(Message, frozen=True):
    """``tokens`` of completions were generated in this actor's life until ``at``, on the monotonic clock."""

    model: str
    tokens: int
    at: float
    actor_urn: str


class LoadRequested(Message, frozen=True):
    """A model wants to load in one of these ways, the first that fits; no way is known before its files are there."""

    model: str
    needs: tuple[Need, ...]


class Stays(Message, frozen=True):
    """It was asked to leave if idle, but is busy or pinned."""

    model: str


class RanOutOfMemory(Message, frozen=True):
    """Its worker died for lack of memory."""

    model: str
    error: PlimsollError


class WorkerHangs(Message, frozen=True):
    """Its worker hangs and is killed now; the model itself stays."""

    model: str


class WorkerStuck(Message, frozen=True):
    """Its worker was given up: the process can't be ended and holds its memory for as long as it likes."""

    model: str
    pid: int


class ChildStopped(Message, frozen=True):
    """The worker is gone for good and this actor will load nothing more."""

    model: str
    reason: str
    actor_urn: str


class Handback(Message, frozen=True):
    """A chat that reached an actor on its way out: the next one serves it."""

    chat: Chat


# ---- worker to ModelActor; the generation lets what a former worker said be ignored


class FromWorker(Message, frozen=True):
    generation: int
    event: Event


class WorkerExited(Message, frozen=True):
    """``code`` as ``Popen.returncode``: negative for a signal. ``oom_killed``: the system's OOM killer was at work.

    ``stuck_pid`` is set for a process that not even SIGKILL has ended: it is given up, and holds its memory still.
    """

    generation: int
    code: int
    oom_killed: bool = False
    stuck_pid: int | None = None


# ---- memory


class Subscribe(Message, frozen=True):
    """Send ``ref`` every memory event from now on, and with ``every_sample`` each ``Sampled`` too."""

    ref: Ref
    every_sample: bool = False


class Sampled(Message, frozen=True):
    """One sample and the level after it; ``sample`` None means that reading failed.

    ``sampler_lag_s`` is how much later than intended the sampling thread began with it.
    """

    sample: Sample | None
    level: Level
    seconds_to_critical: float | None = None
    sampler_lag_s: float = 0.0


class Track(Message, frozen=True):
    """Measure these workers from now on, and with ``hurry`` as often as makes sense."""

    workers: tuple[Tracked, ...]
    hurry: bool


class Marks(Message, frozen=True):
    """Hold memory against these thresholds and this limit from now on."""

    thresholds: Thresholds
    limit_bytes: int | None


class MemoryEvent(Message, frozen=True):
    sample: Sample


class MemoryNormal(MemoryEvent, frozen=True):
    pass


class MemoryWarning(MemoryEvent, frozen=True):
    pass


class MemoryCritical(MemoryEvent, frozen=True):
    pass


class MemoryEmergency(MemoryEvent, frozen=True):
    pass


# ---- what GetStatus is answered with


class NodeStatus(Message, frozen=True):
    """One node of a cluster; ``models`` names those that have a life there."""

    name: str
    level: Level
    used_percent: float | None
    models: tuple[str, ...]


class Status(Message, frozen=True):
    """The whole server at one moment. ``problems`` are sentences; with any the server is degraded.

    ``footprints`` maps model names to bytes, ``tokens_per_s`` those that generate to their rate over the last two
    seconds; ``pinned`` names all that are, without an actor too; ``sampler_lag_s`` is that of the latest sample.
    ``seats`` are the ledger's, for a cluster's head; ``nodes`` are set by a cluster's head alone.
    """

    level: Level
    sample: Sample | None
    models: list[ModelStatus]
    admission: Literal["open", "closed"]
    stopping: bool
    problems: list[str]
    footprints: dict[str, int] = {}
    sampler_lag_s: float = 0.0
    tokens_per_s: dict[str, float] = {}
    pinned: frozenset[str] = frozenset()
    seconds_to_critical: float | None = None
    seats: tuple[Seat, ...] = ()
    nodes: tuple[NodeStatus, ...] | None = None
