"""The messages between actors, and between the front end and the actors: frozen, no logic.

| from | to | messages |
|---|---|---|
| http | Supervisor | Chat, Cancel, GetStatus, LoadModel, UnloadModel, StopAll |
| Supervisor | ModelActor | Chat, Cancel, Warm, Load, RefuseLoad, Unload |
| Supervisor | Watchdog | Subscribe |
| ModelActor | Supervisor | LoadRequested, StateChanged, ChildStopped, Handback |
| worker reader thread | its ModelActor | FromWorker, WorkerExited |
| Watchdog | Supervisor | Sampled |
| Watchdog | Supervisor, every ModelActor | MemoryNormal, MemoryWarning, MemoryCritical, MemoryEmergency |
| timers | whoever set them | the message that was set |
"""

import enum
from typing import Any, Literal, Protocol

import msgspec
import pykka

from plimsoll.engine.protocol import ChatRequest, Event, ModelInfo, Usage
from plimsoll.errors import PlimsollError
from plimsoll.memory.sample import Level, Sample

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
    """More text; ``tokens`` is the count generated so far."""

    text: str
    tokens: int


class Finished(Message, frozen=True):
    """An ending: ``reason`` is stop, length or cancelled."""

    reason: str
    usage: Usage


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
    request: ChatRequest
    reply: Reply
    retried: bool = False


class Cancel(Message, frozen=True):
    """The client of request ``id`` is gone."""

    id: str
    model: str


class GetStatus(Message, frozen=True):
    """Replied to with one ``Status``."""

    reply: Reply


class LoadModel(Message, frozen=True):
    """Replied to with ``Waiting`` while it loads, then ``ModelStatus`` or ``Failed``."""

    model: str
    reply: Reply


class UnloadModel(Message, frozen=True):
    """Replied to with ``ModelStatus`` (stopped) or ``Failed``. Running answers get ``grace_s`` to finish."""

    model: str
    reply: Reply
    grace_s: float


class StopAll(Message, frozen=True):
    """The server stops: no new request, ``grace_s`` for running ones, then no worker is left. Replied to with None."""

    grace_s: float
    reply: Reply


# ---- Supervisor to ModelActor


class Load(Message, frozen=True):
    """Memory is granted: start the worker. ``budget_bytes`` is the grant."""

    budget_bytes: int


class RefuseLoad(Message, frozen=True):
    error: PlimsollError


class Unload(Message, frozen=True):
    """Leave. ``if_idle`` leaves a model alone that has become busy since the decision."""

    reason: str
    grace_s: float = 0.0
    if_idle: bool = False


class Warm(Message, frozen=True):
    """Load though no request waits."""


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


class ModelStatus(Message, frozen=True):
    """One model as its actor sees it. Times are seconds on the monotonic clock."""

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
    info: ModelInfo | None = None
    error: str = ""


class StateChanged(Message, frozen=True):
    status: ModelStatus


class LoadRequested(Message, frozen=True):
    """A cold model has requests waiting, or a pinned one lost its worker."""

    model: str


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
    """``code`` as ``Popen.returncode``: negative for a signal."""

    generation: int
    code: int


# ---- memory


class Subscribe(Message, frozen=True):
    """Send ``ref`` every memory event from now on, and with ``every_sample`` each ``Sampled`` too."""

    ref: Ref
    every_sample: bool = False


class Sampled(Message, frozen=True):
    """One sample and the level after it; ``sample`` None means that reading failed."""

    sample: Sample | None
    level: Level


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


class Status(Message, frozen=True):
    """The whole server at one moment. ``problems`` are sentences; with any the server is degraded."""

    level: Level
    sample: Sample | None
    models: list[ModelStatus]
    admission: Literal["open", "closed"]
    stopping: bool
    problems: list[str]
