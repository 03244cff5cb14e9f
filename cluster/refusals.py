"""Why a model is not loaded: a sentence for each node, and the error that the client gets."""

from collections.abc import Mapping, Sequence

from plimsoll.cluster.node import Standing
from plimsoll.errors import InsufficientMemory, NeverFits
from plimsoll.memory.report import gib

_RETRY_S = 10.0
# An error names the reasons of this many nodes; of a thousand nobody reads more.
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
    """Why it takes the model in no case, whatever room it has; empty where it does."""
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
