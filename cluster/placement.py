"""On which node a model is loaded: a pure decision over the nodes' figures.

The node chosen decides once more by its own ledger, with figures that are newer.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from plimsoll.cluster.node import Standing
from plimsoll.errors import InsufficientMemory, NeverFits
from plimsoll.memory.ledger import Need, Plan, Seat, plan
from plimsoll.memory.memory_errors import gib

_RETRY_S = 10.0
# An error names the reasons of at most this many nodes: nobody reads a thousand of them.
_NAMED = 20


def why_not(node: Standing, model: str, size: int, *, now: float, avoided: bool, spare_recent_s: float = 0.0) -> str:
    """Why ``size`` bytes for ``model`` are not loaded on this node now, with its figures."""
    return f"{node.view.name} {_shut(node, model, size, now, avoided=avoided) or _full(node, size, spare_recent_s)}"


def summary(model: str, size: int, nodes: Sequence[Standing], *, never: bool) -> str:
    """The refusal in one sentence."""
    if not nodes:
        return f"{model} is not loaded: no node is there; start one or try again later"
    if never:
        largest = min(nodes, key=lambda one: (-one.most_bytes, one.id))
        return (
            f"{model} can't be loaded on any of {len(nodes)} nodes: it needs {gib(size)}, and the largest, "
            f"{largest.view.name}, has {gib(largest.most_bytes)} below its critical line; use a smaller model"
        )
    best = min(nodes, key=lambda one: (-one.distance_bytes, one.id))
    return (
        f"{model} is not loaded on any of {len(nodes)} nodes: it needs {gib(size)}, and the most that is left is "
        f"{gib(max(0, best.distance_bytes))} on {best.view.name}; try again later"
    )


def error(summary: str, reasons: Mapping[str, str], *, never: bool) -> InsufficientMemory:
    """What the client gets for a refused placement."""
    named = [reasons[node] for node in sorted(reasons)[:_NAMED]]
    details = {"nodes": len(reasons), "reasons": named}
    if never:
        return NeverFits(summary, details=details)
    return InsufficientMemory(summary, retry_after_s=_RETRY_S, details=details)


def _shut(node: Standing, model: str, size: int, now: float, *, avoided: bool) -> str:
    """Why the node can't take the model however much room it has; empty where it can."""
    if node.view.sample is not None and size > node.most_bytes:
        return f"can never hold it: {gib(size)} of the {gib(node.most_bytes)} below its critical line"
    if node.silent(now):
        return f"has not reported for {now - node.view.last_seen:.0f} s"
    if node.closed:
        return f"takes no loads: {node.closed}"
    if model in node.models:
        return "has it already, or is about to"
    return "is left out because a load failed there" if avoided else ""


def _full(node: Standing, size: int, spare_recent_s: float) -> str:
    figures = f"has {gib(max(0, node.distance_bytes))} left and {gib(node.evictable_bytes)} evictable"
    victims = node.victims(size)
    if spare_recent_s and victims:
        return f"{figures}, but {victims[-1].name} served {node.idle_s(victims[-1]):.0f} s ago"
    return f"{figures} of the {gib(size)} needed ({node.blockers or 'other programs hold the rest'})"


Fit = Literal["tightest", "roomiest"]
"""Among nodes with room: the one with the least left that stays below its warning line, or the one with the most left.

Simulated (docs/scale.md) the tightest evicts and refuses less from about 30 nodes on: large nodes stay free for large
models, and no load makes its node clean up. Among 10 the roomiest has slightly fewer cold starts.
"""


class Placement(msgspec.Struct, frozen=True):
    """Where to load, or why not.

    ``verdict``: ``load`` on ``node`` now; ``evict`` ``plan.victims`` there first, which the node does by itself;
    ``wait`` for what leaves ``node`` already; ``line`` up behind what loads or answers on ``node``; ``refuse`` for now;
    ``never`` on any of these nodes. ``reasons`` has a sentence for each node by its id, for the last three. ``reason``
    is the whole in one.
    """

    model: str
    verdict: Literal["load", "evict", "wait", "line", "refuse", "never"]
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
    if back := [one for one in nodes if model in one.leaving and one.most_bytes >= size and not one.silent(now)]:
        first = min(back, key=lambda one: one.id)
        return Placement(model, "wait", f"{model} is still being unloaded on {first.view.name}", first.id, need)
    soon = [one for one in able if one.leaving_bytes and _missing(one, size) <= 0]
    if soon:
        first = min(soon, key=lambda one: (_missing(one, size), one.id))
        reason = f"{model} waits for {first.view.name}: {gib(first.leaving_bytes)} are being given back there"
        return Placement(model, "wait", reason, first.id, need)
    reasons = {
        one.id: why_not(one, model, size, now=now, avoided=one.id in avoid, spare_recent_s=spare_recent_s)
        for one in nodes
    }
    later = [] if spare_recent_s else [one for one in able if _missing(one, size) <= one.busy_bytes]
    if later:
        first = min(later, key=lambda one: (_missing(one, size), one.id))
        return Placement(model, "line", summary(model, size, nodes, never=False), first.id, need, reasons=reasons)
    # A node whose memory can't be read may be large enough.
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
        # Victims are ordered by their last use, so the last victim was used most recently.
        able = [one for one in able if one.idle_s(one.victims(size)[-1]) >= spare_recent_s]
    return min(able, key=lambda one: (one.eviction_cost(size), one.id), default=None)


def _missing(node: Standing, size: int) -> int:
    return size - node.distance_bytes - node.evictable_bytes - node.leaving_bytes
