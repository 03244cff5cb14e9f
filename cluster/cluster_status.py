"""The answer to ``GetStatus`` for the whole cluster, made of the nodes' reports by pure functions."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from plimsoll.actors.status import ModelStatus, NodeStatus, State, Status
from plimsoll.cluster.fleet import Member
from plimsoll.memory.sample import Level

_Number = TypeVar("_Number", int, float)

# A model with several replicas has the state of the replica that serves best.
_BEST_FIRST = (
    State.BUSY,
    State.READY,
    State.LOADING,
    State.DRAINING,
    State.BACKOFF,
    State.STOPPING,
    State.FAILED,
    State.STOPPED,
    State.COLD,
)


def whole(members: Iterable[Member], *, stopping: bool, pinned: frozenset[str], problems: Sequence[str]) -> Status:
    """Memory and level are the fullest node's; loads are open while any node takes them."""
    heard = [(one, one.report.status) for one in members if one.report]
    statuses = [status for _, status in heard]
    full = max(statuses, key=_fullness, default=None)
    models: dict[str, list[ModelStatus]] = {}
    for member, status in heard:
        for one in status.models:
            models.setdefault(one.name, []).append(local(member, one))
    told = [f"{member.name}: {problem}" for member, status in heard for problem in status.problems]
    return Status(
        level=full.level if full else Level.NORMAL,
        sample=full.sample if full else None,
        models=[merged(replicas) for replicas in models.values()],
        admission="open" if not stopping and any(one.admission == "open" for one in statuses) else "closed",
        stopping=stopping,
        problems=[*problems, *told],
        footprints=_summed([status.footprints for status in statuses]),
        sampler_lag_s=max((status.sampler_lag_s for status in statuses), default=0.0),
        tokens_per_s=_summed([status.tokens_per_s for status in statuses]),
        pinned=pinned,
        # Nobody knows yet which replica a request will reach.
        contexts={
            name: min(tokens)
            for name in models
            if (tokens := [status.contexts[name] for status in statuses if name in status.contexts])
        },
        granted=_summed([status.granted for status in statuses]),
        kv_bytes=_summed([status.kv_bytes for status in statuses]),
        kv_most_bytes=_summed([status.kv_most_bytes for status in statuses]),
        seconds_to_critical=min(
            (s for status in statuses if (s := status.seconds_to_critical) is not None), default=None
        ),
        nodes=tuple(_node(member, status) for member, status in sorted(heard, key=lambda one: one[0].name)),
    )


def merged(replicas: Sequence[ModelStatus]) -> ModelStatus:
    """All replicas of a model as one status: requests are added up, the rest is of the replica that serves best."""
    best = min(replicas, key=lambda one: _BEST_FIRST.index(one.state))
    if len(replicas) == 1:
        return best
    return msgspec.structs.replace(
        best,
        active=sum(one.active for one in replicas),
        queued=sum(one.queued for one in replicas),
        paused=sum(one.paused for one in replicas),
        pinned=any(one.pinned for one in replicas),
        last_used=max(one.last_used for one in replicas),
        mlx_bytes=sum(one.mlx_bytes for one in replicas),
    )


def local(member: Member, status: ModelStatus) -> ModelStatus:
    """The status with its times on this machine's clock and without the process id, which means nothing here."""
    used = status.last_used + member.ahead_s if status.last_used else 0.0
    still = None if status.still_since is None else status.still_since + member.ahead_s
    return msgspec.structs.replace(status, last_used=used, still_since=still, pid=None)


def _fullness(status: Status) -> tuple[Level, float]:
    return status.level, status.sample.used_percent if status.sample else 0.0


def _node(member: Member, status: Status) -> NodeStatus:
    models = tuple(sorted(one.name for one in status.models if one.state is not State.COLD))
    percent = status.sample.used_percent if status.sample else None
    return NodeStatus(member.name, status.level, percent, models)


def _summed(tables: Iterable[Mapping[str, _Number]]) -> dict[str, _Number]:
    sums: dict[str, _Number] = {}
    for table in tables:
        for name, value in table.items():
            sums[name] = sums[name] + value if name in sums else value
    return sums
