"""The protocol between head and node: commands one way, items the other; a MessagePack frame holds many of either."""

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from plimsoll import errors
from plimsoll.actors.messages import Message
from plimsoll.actors.replies import (
    Delta,
    Failed,
    Finished,
    Logprobs,
    PromptLogprobs,
    Tokens,
    ToolCallDelta,
    Vectors,
    Waiting,
)
from plimsoll.actors.settings import Settings
from plimsoll.actors.status import CleanupReport, ModelStatus, Status
from plimsoll.engine.protocol import Request
from plimsoll.errors import InternalError, PlimsollError
from plimsoll.memory.ledger import Need
from plimsoll.units import to_plain


class _Command(msgspec.Struct, frozen=True, tag=True):
    """A command to a node. A command with an ``id`` is answered by items under that id; the last item ends it."""


class Chat(_Command, frozen=True):
    """The answer goes on behind ``so_far``, tokens that a node that was lost has sent."""

    id: str
    model: str
    request: Request
    so_far: tuple[int, ...] = ()


class Cancel(_Command, frozen=True):
    id: str
    model: str


class KeepAlive(_Command, frozen=True):
    model: str
    seconds: float | None


class Load(_Command, frozen=True):
    id: str
    model: str


class Unload(_Command, frozen=True):
    id: str
    model: str
    grace_s: float


class Pin(_Command, frozen=True):
    id: str
    model: str
    pinned: bool


class CleanUp(_Command, frozen=True):
    id: str
    aggressive: bool


class LookAtMemory(_Command, frozen=True):
    """Begin the emergency clean-up if memory is critically full; sent when somebody asks for the cluster's health."""


class Weigh(_Command, frozen=True):
    """Answered with a ``Report``, so that the head decides by new figures, and then with ``Ways``."""

    id: str
    model: str


class Reconfigure(_Command, frozen=True):
    """``models`` is that section of the configuration as plain data; the node keeps its own memory limit."""

    id: str
    models: dict[str, Any]
    settings: Settings
    drain_s: float


class Stop(_Command, frozen=True):
    id: str
    grace_s: float


Command = (
    Chat | Cancel | KeepAlive | Load | Unload | Pin | CleanUp | LookAtMemory | Weigh | Reconfigure | Stop
)  # fmt: skip

# ---- items


class Ways(msgspec.Struct, frozen=True):
    """How a model could be loaded; none while its files are not on the node, or can't be read."""

    needs: tuple[Need, ...] = ()


class Report(msgspec.Struct, frozen=True):
    """The node as its Supervisor sees it; ``sent_s`` and all times in it are on the node's monotonic clock."""

    sent_s: float
    status: Status


class _Done(msgspec.Struct, frozen=True):
    """None on the wire."""


class _Failure(msgspec.Struct, frozen=True):
    kind: str
    message: str
    param: str | None
    retry_after_s: float | None
    details: dict[str, Any]


_KINDS: tuple[type, ...] = (
    Waiting,
    Delta,
    Logprobs,
    ToolCallDelta,
    Vectors,
    Finished,
    _Failure,
    ModelStatus,
    CleanupReport,
    Ways,
    Report,
    _Done,
    Tokens,
    PromptLogprobs,
)
_numbers = {kind: number for number, kind in enumerate(_KINDS)}
_decoders: tuple[Any, ...] = tuple(msgspec.msgpack.Decoder(kind) for kind in _KINDS)
_encode = msgspec.msgpack.Encoder(enc_hook=to_plain).encode
_commands = msgspec.msgpack.Decoder(list[Command])
_items = msgspec.msgpack.Decoder(list[tuple[str, int, msgspec.Raw]])

Item = tuple[str, Any]
"""The id that it answers, and what a ``Reply`` gets; a ``Report`` has no id."""


def encode_commands(commands: Sequence[Command]) -> bytes:
    return _encode(commands)


def decode_commands(frame: bytes) -> list[Command]:
    return _commands.decode(frame)


def encode_items(items: Sequence[Item]) -> bytes:
    plain = [(to, _flat(item)) for to, item in items]
    return _encode([(to, _numbers[type(item)], item) for to, item in plain])


def decode_items(frame: bytes) -> list[Item]:
    return [(to, _whole(_decoders[number].decode(raw))) for to, number, raw in _items.decode(frame)]


def _flat(item: Any) -> Any:
    if item is None:
        return _Done()
    if not isinstance(item, Failed):
        return item
    error = item.error
    details = msgspec.to_builtins(error.details, enc_hook=str)
    return _Failure(type(error).__name__, error.message, error.param, error.retry_after_s, details)


def _whole(item: Any) -> Any:
    if isinstance(item, _Done):
        return None
    if not isinstance(item, _Failure):
        return item
    kind = getattr(errors, item.kind, InternalError)
    known: type[PlimsollError] = kind if isinstance(kind, type) and issubclass(kind, PlimsollError) else InternalError
    return Failed(known(item.message, param=item.param, retry_after_s=item.retry_after_s, details=item.details))


class NodeJoined(Message, frozen=True):
    """A node has joined and takes commands; its first report follows."""

    id: str
    name: str


class NodeLeft(Message, frozen=True):
    """A node is gone for good; ``why`` completes "the node NAME was lost: "."""

    id: str
    why: str


class FromNode(Message, frozen=True):
    """The items that a node has sent since the last ``FromNode``, in order."""

    id: str
    items: list[Item]


class Tick(Message, frozen=True):
    """From the timer, once a second."""


class Nodes(Protocol):
    """The way to the nodes. May be called from any thread, never blocks, never raises."""

    def send(self, node: str, command: Command) -> None:
        """In order for one node; one that is gone gets nothing, ``NodeLeft`` says so or has said so."""

    def drop(self, node: str, why: str) -> None:
        """Give the node up and end its processes if they can be reached; ``NodeLeft`` follows."""


class Target(Protocol):
    """The actor that a link sends its messages to."""

    def tell(self, message: Any) -> None: ...
