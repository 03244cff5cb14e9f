"""On which node a model is loaded: a pure decision over the nodes' figures.

The node chosen decides once more by its own ledger, with figures that are newer.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from plimsoll.cluster.node import Standing
from plimsoll.cluster.refusals import summary, why_not
from plimsoll.memory.plan import Need, Plan, Seat, plan
from plimsoll.memory.report import gib

Fit = Literal["tightest", "roomiest"]
"""Among nodes with room: the one with the least left that stays below its warning line, or the one with the most left.

Simulated (docs/scale.md) the tightest evicts and refuses less from about 30 nodes on: large nodes stay free for large
models, and no load makes its node clean up. Among 10 the roomiest has slightly fewer cold starts.
"""


class Placement(msgspec.Struct, frozen=True):
    """Where to load, or why not.

    ``verdict``: ``load`` on ``node`` now; ``evict`` ``plan.victims`` there first, which the node does by itself;
    ``wait`` for what leaves ``node`` already; ``refuse`` for now; ``never`` on any of these nodes. ``reasons`` has a
    sentence for each node by its id, for the last two. ``reason`` is the whole in one.
    """

    model: str
    verdict: Literal["load", "evict", "wait", "refuse", "never"]
    reason: str
    node: str = ""
    need: Need | None = None
    plan: Plan | None = None
    reasons: dict[str, str] = {}

    @property
    def placed(self) -> bool:
        return self.verdict in ("load", "evict")


def place(
    model: str,
    needs: Sequence[Need],
    nodes: Iterable[Standing],
    now: float,
    *,
    avoid: frozenset[str] = frozenset(),
    spare_recent_s: float = 0.0,
    fit: Fit = "tightest",
) -> Placement:
    """The best node for the first of ``needs`` that fits anywhere as things are; else evictions for the last one.

    ``avoid`` are ids of nodes not to be taken, where it failed a moment ago. Nobody is evicted who served in the last
    ``spare_recent_s`` seconds. Equal nodes are told apart by their ids.
    """
    if not needs:
        raise ValueError("a model can't be loaded in no way at all")
    nodes = list(nodes)
    open_ones = [
        one
        for one in nodes
        if not one.closed and model not in one.models and one.id not in avoid and not one.silent(now)
    ]
    for need in needs:
        fitting = [one for one in open_ones if one.distance_bytes >= need.total_bytes]
        if fitting:
            return _placed(model, need, *_best(fitting, need.total_bytes, fit))
    need = needs[-1]
    size = need.total_bytes
    able = [one for one in open_ones if one.most_bytes >= size > one.distance_bytes]
    if chosen := _cheapest(able, size, spare_recent_s):
        return _placed(model, need, chosen, "the node where evicting idle models costs least")
    soon = [one for one in able if one.leaving_bytes and _missing(one, size) <= 0]
    if soon:
        first = min(soon, key=lambda one: (_missing(one, size), one.id))
        reason = f"{model} waits for {first.view.name}: {gib(first.leaving_bytes)} are being given back there"
        return Placement(model, "wait", reason, first.id, need)
    reasons = {
        one.id: why_not(one, model, size, now=now, avoided=one.id in avoid, spare_recent_s=spare_recent_s)
        for one in nodes
    }
    # Nothing is known of a node whose memory can't be read, so it may be large enough.
    never = bool(nodes) and all(one.view.sample is not None and one.most_bytes < size for one in nodes)
    verdict: Literal["refuse", "never"] = "never" if never else "refuse"
    return Placement(model, verdict, summary(model, size, nodes, never=never), "", need, reasons=reasons)


def after(answer: Placement, nodes: Sequence[Standing]) -> list[Standing]:
    """The nodes as they stand once the chosen one was asked for the load."""
    if not answer.placed or answer.need is None:
        return list(nodes)
    seat = Seat(answer.model, answer.need.total_bytes, loaded=False, running=False)
    return [one.booking(seat) if one.id == answer.node else one for one in nodes]


def _placed(model: str, need: Need, node: Standing, why: str) -> Placement:
    view = node.view
    if view.sample is None:
        raise ValueError(f"{view.name} has no sample")  # such a node is closed
    answer = plan(need.total_bytes, node.seats, view.sample, view.critical_percent)
    verdict: Literal["load", "evict"] = "evict" if answer.victims else "load"
    evicted = f", in place of {', '.join(answer.victims)}" if answer.victims else ""
    text = f"{model} goes to {view.name}, {why}: {gib(need.total_bytes)}, {answer.percent_after}% used after{evicted}"
    return Placement(model, verdict, text, node.id, need, answer)


def _best(fitting: list[Standing], size: int, fit: Fit) -> tuple[Standing, str]:
    if fit == "roomiest":
        best = min(fitting, key=lambda one: (-one.distance_bytes, one.id))
        return best, f"the roomiest of {len(fitting)} nodes with room"
    calm = [one for one in fitting if one.calm_bytes >= size]
    best = min(calm or fitting, key=lambda one: (one.distance_bytes, one.id))
    line = "warning" if calm else "critical"
    return best, f"the tightest of {len(calm or fitting)} nodes that stay below their {line} line"


def _cheapest(nodes: Iterable[Standing], size: int, spare_recent_s: float) -> Standing | None:
    able = [one for one in nodes if one.distance_bytes + one.evictable_bytes >= size]
    if spare_recent_s:
        # Victims go in order of their last use, so the last one is who served last.
        able = [one for one in able if one.idle_s(one.victims(size)[-1]) >= spare_recent_s]
    return min(able, key=lambda one: (one.eviction_cost(size), one.id), default=None)


def _missing(node: Standing, size: int) -> int:
    return size - node.distance_bytes - node.evictable_bytes - node.leaving_bytes
