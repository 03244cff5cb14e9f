"""When a model gets more replicas and when it loses one: pure, with hysteresis in level and in time."""

from collections.abc import Iterable, Sequence

import msgspec

from plimsoll.cluster.node import Standing
from plimsoll.cluster.placement import Placement, after, place
from plimsoll.cluster.routing import Replica
from plimsoll.memory.plan import Need


class Rules(msgspec.Struct, frozen=True):
    """A queue on all replicas for ``grow_after_s`` earns as many more as it would fill, at most as many as there are.

    Where the others would have half of their slots free for ``shrink_after_s``, one goes. Nobody who served in the last
    ``spare_recent_s`` is evicted for a replica.
    """

    grow_after_s: float = 15.0
    shrink_after_s: float = 300.0
    shrink_below: float = 0.5
    spare_recent_s: float = 300.0


class Demand(msgspec.Struct, frozen=True):
    """What has to be remembered of a model between looks: since when all its replicas queue, or one is too many."""

    queued_since: float | None = None
    surplus_since: float | None = None


def look(before: Demand, replicas: Sequence[Replica], now: float, rules: Rules) -> Demand:
    """The demand after one look at all replicas of a model."""
    queued = bool(replicas) and all(one.ready and one.queued for one in replicas)
    surplus = len(replicas) > 1 and _load_without_one(replicas) <= rules.shrink_below
    return Demand(
        _since(before.queued_since, now) if queued else None, _since(before.surplus_since, now) if surplus else None
    )


def replicate(
    model: str,
    *,
    demand: Demand,
    replicas: Sequence[Replica],
    needs: Sequence[Need],
    nodes: Iterable[Standing],
    now: float,
    rules: Rules,
) -> list[Placement]:
    """Where more replicas go; the last one may say why it can't. Empty while the model deserves none."""
    if demand.queued_since is None or now - demand.queued_since < rules.grow_after_s:
        return []
    queued, slots = sum(one.queued for one in replicas), max(one.slots for one in replicas)
    answers: list[Placement] = []
    standing = list(nodes)
    for _ in range(min(len(replicas), -(-queued // max(1, slots)))):
        answer = place(model, needs, standing, now, spare_recent_s=rules.spare_recent_s)
        answers.append(answer)
        if not answer.placed:
            break
        standing = after(answer, standing)
    return answers


def retire(
    demand: Demand, replicas: Sequence[Replica], now: float, rules: Rules, pinned: frozenset[str] = frozenset()
) -> str | None:
    """The node whose replica is to be unloaded; None while all are worth keeping.

    Of those that nobody uses the last one: of equals the first gets new conversations. ``pinned`` are nodes where it
    is pinned.
    """
    if demand.surplus_since is None or now - demand.surplus_since < rules.shrink_after_s:
        return None
    unused = [one.node for one in replicas if not (one.running or one.queued or one.node in pinned) and one.ready]
    return max(unused, default=None)


def _since(before: float | None, now: float) -> float:
    return now if before is None else before


def _load_without_one(replicas: Sequence[Replica]) -> float:
    slots = [one.slots for one in replicas]
    return sum(one.running + one.queued for one in replicas) / max(1, sum(slots) - max(slots))
