"""What goes between the head and a node: commands one way, items the other; many of either in one MessagePack frame."""

from collections.abc import Sequence
from typing import Any

import msgspec

from plimsoll import errors
from plimsoll.actors import messages as m
from plimsoll.engine.protocol import Request
from plimsoll.errors import InternalError, PlimsollError
from plimsoll.memory.levels import Thresholds
from plimsoll.memory.plan import Need
from plimsoll.units import to_plain


class _Command(msgspec.Struct, frozen=True, tag=True):
    """One of these is answered, where it has an ``id``, with items under that id; the last one ends it."""


class Chat(_Command, frozen=True):
    id: str
    model: str
    request: Request
    retried: bool


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
    """Begin the emergency clean-up if memory is critically full; somebody has asked for the health."""


class Weigh(_Command, frozen=True):
    """Answered with ``Ways``."""

    id: str
    model: str


class Reconfigure(_Command, frozen=True):
    """``models`` is that section of the configuration as plain data; the node's own limit stays."""

    id: str
    models: dict[str, Any]
    thresholds: Thresholds
    queue: int
    critical_grace_s: float
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
    """The node as its Supervisor sees it; ``sent_s`` on the node's monotonic clock, as all times in it."""

    sent_s: float
    status: m.Status


class _Done(msgspec.Struct, frozen=True):
    """None on the wire."""


class _Failure(msgspec.Struct, frozen=True):
    kind: str
    message: str
    param: str | None
    retry_after_s: float | None
    details: dict[str, Any]


_KINDS: tuple[type, ...] = (
    m.Waiting,
    m.Delta,
    m.Logprobs,
    m.ToolCallDelta,
    m.Vectors,
    m.Finished,
    _Failure,
    m.ModelStatus,
    m.CleanupReport,
    Ways,
    Report,
    _Done,
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
    if not isinstance(item, m.Failed):
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
    return m.Failed(known(item.message, param=item.param, retry_after_s=item.retry_after_s, details=item.details))
