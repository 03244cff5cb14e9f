"""What the actors publish: a model's state, and the whole server at one moment."""

import enum
import math
from typing import Literal

import msgspec

from plimsoll.actors.expected_wait import Pace
from plimsoll.engine.protocol import ModelInfo
from plimsoll.memory.ledger import Seat
from plimsoll.memory.sample import Level, Sample


class CleanupReport(msgspec.Struct, frozen=True):
    """The result of a clean-up: bytes, and percent of memory used before and after."""

    aggressive: bool
    reason: str
    unloaded: list[str]
    expected_bytes: int
    freed_bytes: int
    percent_before: float
    percent_after: float


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


class HostFigures(msgspec.Struct, frozen=True):
    """The fullest source of memory on one host of a group; bytes."""

    host: str
    source: str
    total: int
    used: int


class ModelStatus(msgspec.Struct, frozen=True):
    """One model as its actor sees it. Times are seconds on the monotonic clock.

    ``more_pids`` and ``hosts`` belong to a model that a group serves. ``until_eased``: it drains, or drains faster,
    only while memory is critically full. ``still_since``: the load, or the oldest waiting request, has seen no progress
    since then; None while nothing waits. ``paused`` of the ``queued`` requests have lost a worker.
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
    until_eased: bool = False
    still_since: float | None = None
    paused: int = 0


class Usage(msgspec.Struct, frozen=True):
    """The figures of ``ModelStatus`` that every request changes.

    Of the ``queued`` requests ``paused`` have lost a worker, the oldest of them at ``paused_since``. The last of these
    ends at ``paused_until``, and the last of all at ``waits_until``, if no load has begun by then.
    """

    active: int = 0
    queued: int = 0
    last_used: float = 0.0
    still_since: float | None = None
    paused: int = 0
    paused_since: float = math.inf
    paused_until: float = 0.0
    waits_until: float = 0.0


class LiveUsage:
    """How much one model is used right now: its ModelActor replaces ``newest`` as a whole, the Supervisor reads it.

    The Supervisor needs these figures when it decides about memory and when it reports. Told by messages, they would
    cost it two more messages for every request. ``pace`` is the same in all lives of a model.
    """

    def __init__(self, pace: Pace | None = None) -> None:
        self.newest = Usage()
        self.pace = pace or Pace()


def with_usage(status: ModelStatus, usage: Usage) -> ModelStatus:
    """``status`` with these figures; a model that serves is busy if a request runs, else ready."""
    state = status.state
    if state in SERVING:
        state = State.BUSY if usage.active else State.READY
    return msgspec.structs.replace(
        status,
        state=state,
        active=usage.active,
        queued=usage.queued,
        last_used=usage.last_used,
        still_since=usage.still_since,
        paused=usage.paused,
    )


def since_when_still(before: ModelStatus | None, status: ModelStatus, now: float) -> float | None:
    """Since when the load, or the oldest waiting request, has seen no progress; None if nothing waits."""
    loading = status.state == State.LOADING
    if not (loading or status.queued):
        return None
    if before is None or before.still_since is None or before.state != status.state:
        return now
    was, present = ((one.pid, one.stage, one.done_bytes, one.total_bytes) for one in (before, status))
    return now if loading and was != present else before.still_since


class NodeStatus(msgspec.Struct, frozen=True):
    """One node of a cluster; ``models`` names the models that have an actor there."""

    name: str
    level: Level
    used_percent: float | None
    models: tuple[str, ...]


class Status(msgspec.Struct, frozen=True):
    """The whole server at one moment. ``problems`` are sentences; with any the server is degraded.

    ``footprints`` maps model names to bytes; ``tokens_per_s`` maps models that generate to their rate over the last two
    seconds; ``pinned`` names all pinned models, those without an actor too; ``sampler_lag_s`` belongs to the newest
    sample.
    ``seats`` are the ledger's, for a cluster's head; ``nodes`` are set by a cluster's head alone. ``contexts`` maps
    models with a worker to the tokens of the longest conversation that they may ever have room for, ``granted`` to the
    bytes that they may take now, ``kv_bytes`` to the part of it that is for KV caches, ``kv_most_bytes`` to the most
    that this part may grow to.
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
    contexts: dict[str, int] = {}
    granted: dict[str, int] = {}
    kv_bytes: dict[str, int] = {}
    kv_most_bytes: dict[str, int] = {}
    nodes: tuple[NodeStatus, ...] | None = None
