"""Which replica of a model answers a request: a pure decision."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any

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


_encode = msgspec.msgpack.Encoder(order="deterministic").encode


def beginnings(model: str, messages: Sequence[Any]) -> list[bytes]:
    """A key for every beginning of the conversation, the shortest first: what may be known of it.

    Each takes in the one before, so the whole is hashed once.
    """
    keys = []
    running = blake2b(model.encode(), digest_size=16)
    for message in messages:
        running.update(blake2b(_encode(message), digest_size=16).digest())
        keys.append(running.digest())
    return keys


class Affinity:
    """At most ``capacity`` conversations, each at about 250 bytes. Belongs to one owner, no locks."""

    def __init__(self, capacity: int = 100_000) -> None:
        self._capacity = capacity
        self._nodes: OrderedDict[bytes, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._nodes)

    def remember(self, keys: Sequence[bytes], node: str) -> None:
        """The node has read all of this conversation; its next turn begins with it."""
        if not keys:
            return
        self._nodes[keys[-1]] = node
        self._nodes.move_to_end(keys[-1])
        while len(self._nodes) > self._capacity:
            self._nodes.popitem(last=False)

    def find(self, keys: Sequence[bytes]) -> str | None:
        """The node that knows the longest beginning."""
        for key in reversed(keys):
            if (node := self._nodes.get(key)) is not None:
                self._nodes.move_to_end(key)
                return node
        return None

    def forget(self, node: str) -> None:
        """The node is gone, and what it knew with it."""
        self._nodes = OrderedDict((key, value) for key, value in self._nodes.items() if value != node)
