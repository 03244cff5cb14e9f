"""Which replica of a model answers a request: a pure decision."""

from collections.abc import Iterable

import msgspec

# A replica that knows the conversation is kept although it is busier by up to this many turns of its batch. What it
# knows costs a few percent of reading it anew (docs/speed.md), but a queue of a whole turn costs an answer's time.
MUCH_BUSIER = 0.5


class Replica(msgspec.Struct, frozen=True):
    """One node's copy of a model; ``ready`` is false while it loads."""

    node: str
    running: int = 0
    queued: int = 0
    slots: int = 1
    ready: bool = True

    @property
    def load(self) -> float:
        """Requests per slot: 1.0 is full, beyond it they wait."""
        return (self.running + self.queued) / max(1, self.slots)


class Route(msgspec.Struct, frozen=True):
    """``known`` says that the node holds the conversation's prompt cache."""

    node: str
    known: bool
    reason: str


def route(replicas: Iterable[Replica], holder: str | None = None) -> Route | None:
    """The node that answers; None where the model has no replica and has to be placed first.

    ``holder`` is the node that answered the conversation before (``affinity``). It is kept unless it is much busier
    than the least busy one: no slot free and more than ``MUCH_BUSIER`` above it. Ready ones come before loading ones.
    """
    found = list(replicas)
    candidates = [one for one in found if one.ready] or found
    if not candidates:
        return None
    least = min(candidates, key=lambda one: (one.load, one.node))
    kept = next((one for one in candidates if one.node == holder), None)
    if kept is None:
        return Route(least.node, False, f"{least.node} is the least busy of {len(candidates)}")
    if kept.load >= 1.0 and kept.load - least.load > MUCH_BUSIER:
        return Route(least.node, False, f"{kept.node} knows the conversation but is much busier than {least.node}")
    return Route(kept.node, True, f"{kept.node} knows the conversation")
