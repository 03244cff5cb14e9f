"""What can happen to memory: one frozen struct per kind. The tag ``kind`` is the class name in snake case.

Figures are bytes, percent of memory used (0 to 100), seconds or milliseconds, as the field's name says. The black
box keeps events as JSON for 7 days, over upgrades too: a field added later needs a default.
"""

import enum
import json
import logging
import re
from typing import Any, ClassVar, get_args

import msgspec

from plimsoll.memory.sample import Level


def _kind(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


class LevelName(enum.StrEnum):
    """``memory.Level`` by name, as JSON shows it."""

    NORMAL = "normal"
    WARNING = "warning"
    CRITICAL = "critical"
    EMERGENCY = "emergency"

    @classmethod
    def of(cls, level: Level) -> "LevelName":
        return cls[level.name]


class Event(msgspec.Struct, frozen=True, tag_field="kind", tag=_kind):
    """Anything the journal records; ``severity`` is a level of ``logging``."""

    _severity: ClassVar[int] = logging.INFO

    @property
    def kind(self) -> str:
        return kind_of(type(self))

    @property
    def severity(self) -> int:
        return self._severity


class Entry(msgspec.Struct, frozen=True):
    """One recorded event: ``id`` rises with every event, over restarts too; ``at`` in seconds since the epoch."""

    id: int
    at: float
    event: Event


# ---- the level


class LevelChanged(Event, frozen=True):
    """``source`` is the binding source, or the pressure signal that raised the level."""

    level: LevelName
    before: LevelName
    percent: float
    source: str

    @property
    def falls(self) -> bool:
        names = list(LevelName)
        return names.index(self.level) < names.index(self.before)

    @property
    def severity(self) -> int:
        if self.falls or self.level == LevelName.NORMAL:
            return logging.INFO
        return logging.WARNING if self.level == LevelName.WARNING else logging.ERROR


class Forecast(Event, frozen=True):
    """Memory is critically full in ``seconds`` if it fills on like this."""

    _severity = logging.WARNING

    seconds: float
    percent: float


class OtherProcess(msgspec.Struct, frozen=True):
    name: str
    pid: int
    bytes: int


class ExternalPressure(Event, frozen=True):
    """No unload of ours could lower memory use: ``others`` are the largest other processes."""

    _severity = logging.WARNING

    percent: float
    ours_bytes: int
    others: tuple[OtherProcess, ...]


class ReadersFailed(Event, frozen=True):
    """``names`` gave no figures, so use may be other than shown; without names it is all of them, for ``reason``."""

    _severity = logging.ERROR

    names: tuple[str, ...]
    reason: str = ""


class WatchdogRestarted(Event, frozen=True):
    """Memory was not watched for ``silent_s`` seconds: the Watchdog was ``dead``, or else said nothing."""

    _severity = logging.ERROR

    dead: bool
    silent_s: float


class ReadersRecovered(Event, frozen=True):
    pass


# ---- models


class LoadStarted(Event, frozen=True):
    """``reserved_bytes`` is held for all loads under way, this one included."""

    model: str
    required_bytes: int
    reserved_bytes: int


class ModelLoaded(Event, frozen=True):
    model: str
    seconds: float
    weights_bytes: int
    footprint_bytes: int
    device: str


class LoadFailed(Event, frozen=True):
    _severity = logging.ERROR

    model: str
    reason: str


class LoadRefused(Event, frozen=True):
    """``repeated``: the same was said a moment ago, so that a log line of each would hide all others."""

    _severity = logging.WARNING

    model: str
    required_bytes: int
    available_bytes: int
    percent: float
    reason: str
    repeated: bool = False

    @property
    def severity(self) -> int:
        return logging.DEBUG if self.repeated else self._severity


class LoadsRefused(Event, frozen=True):
    """``count`` loads were refused in ``seconds``, each a repeated ``LoadRefused``; ``reason`` is the last one's."""

    _severity = logging.WARNING

    model: str
    count: int
    seconds: float
    reason: str


class ModelUnloaded(Event, frozen=True):
    """``freed_bytes`` is what the system showed to be back, ``milliseconds`` after the stop was asked for."""

    model: str
    reason: str
    expected_bytes: int
    freed_bytes: int
    milliseconds: float


class FasterForm(Event, frozen=True):
    """The model is loaded anew, dense instead of packed.

    That needs ``required_bytes``. ``room_bytes`` are below the warning line now, and enough were for ``seconds``.
    """

    model: str
    required_bytes: int
    room_bytes: int
    seconds: float


class CleanupStarted(Event, frozen=True):
    aggressive: bool
    reason: str
    percent: float


class CleanupDone(Event, frozen=True):
    aggressive: bool
    unloaded: tuple[str, ...]
    expected_bytes: int
    freed_bytes: int
    percent_before: float
    percent_after: float

    @property
    def freed_percent(self) -> float:
        return max(0.0, self.percent_before - self.percent_after)


class WorkerDied(Event, frozen=True):
    """``how``: "signal 11"; ``doing``: "loading", "generating"."""

    _severity = logging.ERROR

    model: str
    how: str
    doing: str


class AnswersPaused(Event, frozen=True):
    """``requests`` have lost their worker because of ``why`` and wait for the model's next one."""

    _severity = logging.WARNING

    model: str
    requests: int
    why: str


class AnswersResumed(Event, frozen=True):
    """A new worker carries ``requests`` on that were paused because of ``why``, the first of them ``paused_s`` ago."""

    model: str
    requests: int
    paused_s: float
    why: str


class OutOfMemory(Event, frozen=True):
    _severity = logging.ERROR

    model: str
    detail: str
    percent: float


class WorkerKilled(Event, frozen=True):
    """The worker did not stop within its grace and was killed."""

    _severity = logging.WARNING

    model: str
    pid: int


class WorkerHung(Event, frozen=True):
    """The worker had work, was silent for ``silent_s`` seconds and is replaced; ``requests`` were running."""

    _severity = logging.ERROR

    model: str
    pid: int
    silent_s: float
    doing: str
    requests: int


class WorkerStuck(Event, frozen=True):
    """Not even SIGKILL has ended the worker: its memory counts as used while the process exists."""

    _severity = logging.ERROR

    model: str
    pid: int
    footprint_bytes: int


class StuckWorkerGone(Event, frozen=True):
    model: str
    pid: int


# ---- the server


class ServerStarted(Event, frozen=True):
    version: str
    port: int
    pid: int


class ServerStopped(Event, frozen=True):
    reason: str


class ConfigReloaded(Event, frozen=True):
    """The configuration was read again; the keys that apply at once, and those that need a restart."""

    changed: tuple[str, ...]
    needs_restart: tuple[str, ...]


class ConfigRefused(Event, frozen=True):
    """It was read again and can't be used, so nothing has changed."""

    _severity = logging.ERROR

    reason: str


class LastRun(Event, frozen=True):
    """How the run before this one ended: with the words ``how``, or not ``clean``, which is killed or crashed.

    ``at`` is its end or last sign of life (seconds since the epoch), ``percent`` its last sample.
    """

    clean: bool
    how: str
    at: float
    percent: float | None

    @property
    def severity(self) -> int:
        return logging.INFO if self.clean else logging.WARNING


# ---- a cluster's nodes, as its head sees them


class NodeJoined(Event, frozen=True):
    """The node serves from now on."""

    node: str


class NodeLost(Event, frozen=True):
    """The node is gone, and ``ended`` answers with it."""

    _severity = logging.ERROR

    node: str
    reason: str
    ended: int


AnyEvent = (
    LevelChanged
    | Forecast
    | ExternalPressure
    | ReadersFailed
    | ReadersRecovered
    | WatchdogRestarted
    | LoadStarted
    | ModelLoaded
    | LoadFailed
    | LoadRefused
    | LoadsRefused
    | ModelUnloaded
    | FasterForm
    | CleanupStarted
    | CleanupDone
    | WorkerDied
    | AnswersPaused
    | AnswersResumed
    | OutOfMemory
    | WorkerKilled
    | WorkerHung
    | WorkerStuck
    | StuckWorkerGone
    | ServerStarted
    | ServerStopped
    | ConfigReloaded
    | ConfigRefused
    | LastRun
    | NodeJoined
    | NodeLost
)


def kind_of(cls: type[Event]) -> str:
    return str(cls.__struct_config__.tag)


KINDS: dict[str, type[Event]] = {kind_of(cls): cls for cls in get_args(AnyEvent)}

_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(AnyEvent)


def to_json(event: Event, **more: Any) -> str:
    """``event`` as a JSON object with its ``kind``, after the keys of ``more``."""
    text = json.dumps({**more, **msgspec.to_builtins(event)}, ensure_ascii=False)
    # The name of another process may hold bytes that are not text.
    return text.encode("utf-8", "replace").decode()


def from_json(text: str) -> Event | None:
    """The event in ``text``; None for one of another version that this one can't read."""
    try:
        event: Event = _decoder.decode(text)
    except msgspec.MsgspecError:
        return None
    return event
