"""The messages between actors, and between the front end and the actors: frozen, no logic.

| from | to | messages |
|---|---|---|
| http | Supervisor | Chat, Cancel, KeepAlive, GetStatus, LoadModel, UnloadModel, PinModel, CleanUpModels, PlanLoad |
| http | Supervisor | Reconfigure |
| the system | Supervisor | StopAll |
| Supervisor | ModelActor | Chat, Cancel, KeepAlive, Warm, Load, RefuseLoad, Unload, Rules, Pin, CountTokens |
| Supervisor | ModelActor | MemoryEased, Lease, GiveWay |
| Supervisor | Watchdog | Subscribe, Track, Marks |
| ModelActor | Supervisor | LoadRequested, LeaseRequested, StateChanged, Stays, RanOutOfMemory, WorkerHangs |
| ModelActor | Supervisor | WorkerStuck, ChildStopped, Handback, Counted |
| worker reader thread | its ModelActor | FromWorker, WorkerExited |
| spare worker's reader thread | Supervisor | SpareExited |
| Watchdog | Supervisor | Sampled |
| Watchdog | Supervisor, every ModelActor | MemoryNormal, MemoryWarning, MemoryCritical, MemoryEmergency |
| timers | the actor that set them | the message that was set |
"""

import math
import queue
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
import pykka

from plimsoll.actors.replies import Failed, Reply
from plimsoll.actors.resume import Resume
from plimsoll.actors.settings import Settings
from plimsoll.actors.status import ModelStatus
from plimsoll.catalog.names import Catalog
from plimsoll.engine.handle.process import Started, Worker
from plimsoll.engine.protocol import Event, Request
from plimsoll.errors import PlimsollError
from plimsoll.memory.ledger import Need
from plimsoll.memory.sample import Level, Sample, Tracked

Ref = pykka.ActorRef[Any]


class Message(msgspec.Struct, frozen=True):
    """Anything that goes into a mailbox."""


def tell(ref: Ref, message: Message) -> bool:
    """Send ``message``; False if the actor is dead."""
    try:
        ref.tell(message)
    except pykka.ActorDeadError:
        return False
    return True


# ---- requests: http to Supervisor


class Chat(Message, frozen=True):
    """Answer ``request`` with ``model``.

    ``resume`` is set where it has lost a worker. ``since`` is when it began to wait for its model to be loaded, None
    while it does not. With ``tells_tokens`` the reply gets ``Tokens`` behind what they say.
    """

    id: str
    model: str
    request: Request
    reply: Reply
    resume: Resume | None = None
    since: float | None = None
    tells_tokens: bool = False

    @property
    def is_paused(self) -> bool:
        """Whether it waits until memory is free again, whatever the level."""
        return self.resume is not None and self.resume.until < math.inf


class Cancel(Message, frozen=True):
    """The client of request ``id`` has disconnected."""

    id: str
    model: str


class KeepAlive(Message, frozen=True):
    """Keep ``model`` loaded for ``seconds`` after its last use, None for ever, 0 unloads it as soon as it is idle.

    It holds until the model is unloaded; for a model that is neither loaded nor loading nothing happens.
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
    """Replied to with one ``CleanupReport`` when the memory of all unloaded models is back, or ``Failed``."""

    reply: Reply
    aggressive: bool = False


class PlanLoad(Message, frozen=True):
    """Replied to with the ``Decision`` that a load would get now; nothing is done."""

    model: str
    needs: tuple[Need, ...]
    reply: Reply


class Reconfigure(Message, frozen=True):
    """The configuration was read again. Replied to with None as soon as all actors were told.

    Models that were removed or load from other files unload when their answers are done, within ``drain_s``.
    """

    catalog: Catalog
    settings: Settings
    drain_s: float
    reply: Reply


class StopAll(Message, frozen=True):
    """The server stops: no new request, ``grace_s`` for running ones. Replied to with None when no worker is left."""

    grace_s: float
    reply: Reply


# ---- Supervisor to ModelActor


class Lease(Message, frozen=True):
    """The KV caches of the model's worker number ``worker`` may take ``kv_bytes`` from now on.

    They will never get more than ``most_bytes``. ``more`` is False if nothing that runs could free memory for them.
    """

    worker: int
    kv_bytes: int
    most_bytes: int
    more: bool = True


class GiveWay(Message, frozen=True):
    """Another model needs memory: hand back the part of the lease that no request uses, and drop stored prefixes."""


class Load(Message, frozen=True):
    """Memory is granted for loading the model in this way, or for fetching its files if they are not there.

    ``spare`` is the spare worker to use; the receiver owns it.
    """

    need: Need
    spare: Worker | None = None


class RefuseLoad(Message, frozen=True):
    error: PlimsollError


class Unload(Message, frozen=True):
    """Unload. With ``if_idle`` a model that has become busy or pinned since the decision stays.

    ``while_level``: the order holds as long as memory is at that level or above; a model that has not stopped by then
    stays.
    Running answers get ``grace_s`` to finish and end with ``error`` if they don't; so do waiting requests, unless
    ``hand_back`` says that the model's next life serves them. With ``pause`` it serves the running ones too: it
    carries them on within ``memory.patience``, and only after that they end with ``error``. With ``reload`` the model
    is loaded again at once, so a pin does not keep it.
    """

    reason: str
    grace_s: float = 0.0
    if_idle: bool = False
    error: PlimsollError | None = None
    hand_back: bool = False
    while_level: Level | None = None
    pause: bool = False
    reload: bool = False


class LoadWaits(Message, frozen=True):
    """The load has to wait; requests that wait longer than they may end with ``error``."""

    error: PlimsollError


class MakeWay(Message, frozen=True):
    """Others have waited long for the memory of this model: begin no more requests, until told ``on`` False."""

    on: bool


class MemoryEased(Message, frozen=True):
    """Memory is not critically full any more, by the sample of ``at``: a model that drains for that serves again."""

    at: float


class Rules(Message, frozen=True):
    """What of the configuration a model follows without being loaded again; times in seconds."""

    pin: bool
    idle_ttl_s: float | None
    settings: Settings


class Warm(Message, frozen=True):
    """Load the model though no request waits."""


class Pin(Message, frozen=True):
    """Be pinned or not, whatever the entry in the file says."""

    pinned: bool


class CountTokens(Message, frozen=True):
    """Answer with ``Counted``: how many tokens were generated."""


# ---- ModelActor to Supervisor


class SpareExited(Message, frozen=True):
    """The spare worker of this number has ended; sent too if it was handed over at that moment."""

    number: int


class FromModel(Message, frozen=True):
    """A message from a ModelActor. ``life`` is its ``actor_urn``: a model has one actor after the other.

    The Supervisor ignores messages of an actor that it has forgotten, unless they have ``matters_after_death``.
    """

    matters_after_death: ClassVar[bool] = False

    model: str
    life: str


class StateChanged(FromModel, frozen=True):
    status: ModelStatus


class Counted(FromModel, frozen=True):
    """The actor's worker has generated ``tokens`` completion tokens until ``at``, on the monotonic clock."""

    tokens: int
    at: float


class LoadRequested(FromModel, frozen=True):
    """The model wants to load in the first of these ways that fits; no way is known before its files are there."""

    needs: tuple[Need, ...]


class LeaseRequested(FromModel, frozen=True):
    """The model's worker number ``worker`` wants room for KV caches: ``wanted_bytes`` in all.

    With less than ``needed_bytes`` a request has to wait. No more than it has now hands the rest back. ``longest`` is
    the longest conversation, in tokens, that the worker could ever serve; 0 where it does not say.
    """

    worker: int
    wanted_bytes: int
    needed_bytes: int
    longest: int = 0


class Stays(FromModel, frozen=True):
    """The model stays: told to unload if idle, it is busy or pinned; or memory is not full any more."""


class RanOutOfMemory(FromModel, frozen=True):
    """The model's worker died for lack of memory."""

    error: PlimsollError


class WorkerHangs(FromModel, frozen=True):
    """The model's worker hangs and is killed now; its actor stays."""


class WorkerStuck(FromModel, frozen=True):
    """The model's worker process does not end even by SIGKILL, and goes on holding its memory."""

    matters_after_death: ClassVar[bool] = True

    pid: int


class ChildStopped(FromModel, frozen=True):
    """The worker has ended and this actor will load nothing more."""

    reason: str


class Handback(FromModel, frozen=True):
    """An actor that unloads hands back a request: the model's next actor serves the chat, or gets the cancel."""

    matters_after_death: ClassVar[bool] = True

    request: Chat | Cancel


# ---- worker to ModelActor; the generation lets what a former worker said be ignored


class FromWorker(Message, frozen=True):
    generation: int
    event: Event | Started


class WorkerExited(Message, frozen=True):
    """``code`` as ``Popen.returncode``: negative for a signal. ``oom_killed``: the system's OOM killer was at work.

    ``stuck_pid`` is set for a process that not even SIGKILL has ended: it still holds its memory.
    """

    generation: int
    code: int
    oom_killed: bool = False
    stuck_pid: int | None = None


# ---- memory


class Subscribe(Message, frozen=True):
    """Send ``ref`` each memory event from now on, and with ``every_sample`` each ``Sampled`` too."""

    ref: Ref
    every_sample: bool = False


class Sampled(Message, frozen=True):
    """One sample and the level after it; ``sample`` None means that reading failed.

    ``confirmed`` is the level of the newest samples without hysteresis; unloading is decided by it.
    ``sampler_lag_s`` is how much later than intended the sampling thread began with it.
    """

    sample: Sample | None
    level: Level
    confirmed: Level = Level.NORMAL
    seconds_to_critical: float | None = None
    sampler_lag_s: float = 0.0


class Track(Message, frozen=True):
    """Measure these workers from now on; with ``hurry`` as often as makes sense."""

    workers: tuple[Tracked, ...]
    hurry: bool


class Marks(Message, frozen=True):
    """Compare memory with the thresholds and the limit of these settings from now on."""

    settings: Settings


class MemoryEvent(Message, frozen=True):
    """The level has changed. Models get ``MemoryCritical`` and ``MemoryEmergency`` with each sample at that level.

    ``falls``: the level was higher before, so nothing has to be unloaded.
    """

    level: ClassVar[Level]

    sample: Sample
    falls: bool = False


class MemoryNormal(MemoryEvent, frozen=True):
    level = Level.NORMAL


class MemoryWarning(MemoryEvent, frozen=True):
    level = Level.WARNING


class MemoryCritical(MemoryEvent, frozen=True):
    level = Level.CRITICAL


class MemoryEmergency(MemoryEvent, frozen=True):
    level = Level.EMERGENCY


# ---- mailboxes


class Mailbox(queue.SimpleQueue[Any]):
    """An inbox for pykka that can be closed: then the thread that puts a message answers it.

    ``queue.Queue``, which pykka takes, costs 7 us for each message; this one, written in C, 0.5.
    """

    def __init__(self) -> None:
        super().__init__()
        self._closing = threading.Lock()
        self._answer: Callable[[Any], object] | None = None

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        with self._closing:
            # pykka itself answers its own requests (stop, proxy).
            if self._answer is None or item.reply_to is not None:
                super().put(item, block, timeout)
                return
        self._answer(item.message)

    def close(self, answer: Callable[[Any], object]) -> None:
        """Call ``answer`` with each message in here, and with each that will come."""
        with self._closing:
            self._answer = answer
            left = []
            while not self.empty():
                left.append(self.get())
            for envelope in left:
                if envelope.reply_to is not None:
                    super().put(envelope)
        for envelope in left:
            if envelope.reply_to is None:
                answer(envelope.message)


class Actor(pykka.ThreadingActor):
    """An actor that gets requests. It has to call ``close_mailbox`` in its ``on_stop`` and ``on_failure``."""

    use_daemon_thread = True
    actor_inbox: Mailbox

    @staticmethod
    def _create_actor_inbox() -> Mailbox:
        return Mailbox()

    def close_mailbox(self, error: PlimsollError) -> None:
        """End the requests in the mailbox with ``error``, and kill spare workers in it."""
        self.actor_inbox.close(lambda message: _answer(message, error))


def reply_of(message: Any) -> Reply | None:
    """The reply that has to get an ending for ``message``, or None."""
    if isinstance(message, Handback):
        return message.request.reply if isinstance(message.request, Chat) else None
    return getattr(message, "reply", None)


def _answer(message: Any, error: PlimsollError) -> None:
    if (reply := reply_of(message)) is not None:
        reply.send(Failed(error))
    elif isinstance(message, Load) and message.spare:
        message.spare.kill()
