"""When a model gets more replicas and when it loses one: pure, with hysteresis in level and in time."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from plimsoll.cluster.node import NodeView, Standing
from plimsoll.cluster.placement import Placement, after, place
from plimsoll.cluster.routing import Replica
from plimsoll.memory.ledger import Need, Seat


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
    """A model's state between checks: since when all its replicas queue, or since when a replica is superfluous."""

    queued_since: float | None = None
    surplus_since: float | None = None


def look(before: Demand, replicas: Sequence[Replica], now: float, rules: Rules) -> Demand:
    """The demand after one check of all replicas of a model."""
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


# A model of a lost node that was idle for this long is loaded again by its next request only.
RECENT_S = 300.0


class Return(msgspec.Struct, frozen=True):
    """What becomes of one model of a lost node; ``placement`` is None where it is not brought back."""

    model: str
    reason: str
    placement: Placement | None = None


def after_loss(
    lost: NodeView,
    needs: Mapping[str, Sequence[Need]],
    nodes: Sequence[Standing],
    now: float,
    *,
    served_elsewhere: Collection[str] = (),
) -> list[Return]:
    """What becomes of each model of the lost node: pinned ones first, then the most recently used.

    ``needs`` by model name. Each placement counts for those after it. Models of ``served_elsewhere`` have another
    replica and stay away. For a pinned model idle ones are evicted, for others only those not used for five minutes.
    """
    ages = {seat.name: lost.sent_s - seat.last_used for seat in lost.seats}
    standing = [one for one in nodes if one.id != lost.id]
    returns = []
    for seat in sorted(lost.seats, key=lambda seat: (not seat.pinned, -seat.last_used, seat.name)):
        name = seat.name
        if reason := _stays_away(seat, ages[name], served_elsewhere, needs):
            returns.append(Return(name, reason))
            continue
        spared = 0.0 if seat.pinned else RECENT_S
        answer = place(name, needs[name], standing, now, spare_recent_s=spared)
        standing = after(answer, standing)
        returns.append(Return(name, answer.reason, answer))
    return returns


def _stays_away(seat: Seat, age_s: float, elsewhere: Collection[str], needs: Mapping[str, Sequence[Need]]) -> str:
    if seat.leaving:
        return f"{seat.name} was being unloaded"
    if seat.name in elsewhere:
        return f"{seat.name} has another replica"
    if seat.name not in needs:
        return f"{seat.name} is not known here: what it needs was never reported"
    if not seat.pinned and seat.loaded and age_s > RECENT_S:
        return f"{seat.name} was last used {age_s:.0f} s before; its next request loads it"
    return ""
