"""What the link tells the Dispatcher, and what the Dispatcher asks of the link.

A node's ``id`` names one life of it: when its process is started anew it has another.
"""

from typing import Any, Protocol

from plimsoll.actors.messages import Message
from plimsoll.cluster.wire import Command, Item


class NodeJoined(Message, frozen=True):
    """A node is there and takes commands; its first report is on its way."""

    id: str
    name: str


class NodeLeft(Message, frozen=True):
    """A node is gone for good; ``why`` completes "the node NAME was lost: "."""

    id: str
    why: str


class FromNode(Message, frozen=True):
    """What a node has said since the last one of these, in order."""

    id: str
    items: list[Item]


class Tick(Message, frozen=True):
    """Timer: a second has gone by."""


class Nodes(Protocol):
    """The way to the nodes. May be called from any thread, never blocks, never raises."""

    def send(self, node: str, command: Command) -> None:
        """In order for one node; one that is gone gets nothing, ``NodeLeft`` says so or has said so."""

    def drop(self, node: str, why: str) -> None:
        """Give the node up and end its processes if they can be reached; ``NodeLeft`` follows."""


class Target(Protocol):
    """Whom a link tells: an actor's reference."""

    def tell(self, message: Any) -> None: ...
