"""Which models of a lost node come back, and where: a pure decision."""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from plimsoll.cluster.node import NodeView, Standing
from plimsoll.cluster.placement import Placement, after, place
from plimsoll.memory.plan import Need, Seat

# What nobody used for this long comes back with its next request.
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
