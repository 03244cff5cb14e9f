"""Which node knows a conversation: hashes of its beginnings, bounded, the least recently used forgotten first."""

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import msgspec

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
