"""Commands to nodes that are not answered yet; the requests of clients are in ``chats``."""

import itertools
from collections.abc import Callable
from typing import Any

from plimsoll.actors.replies import Failed, Waiting
from plimsoll.cluster.node_protocol import Command, Nodes
from plimsoll.errors import PlimsollError

OnItem = Callable[[Any], None]


class NodeRequests:
    """Owned by the Dispatcher. Each ends with its first item that is no ``Waiting``; a lost node's with ``Failed``."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._numbers = itertools.count(1)
        self._open: dict[str, tuple[str, OnItem]] = {}

    def ask(self, node: str, command: Callable[[str], Command], on_item: OnItem = lambda _: None) -> None:
        """Send the command made with the id that it gets; ``on_item`` is called with each of its items."""
        one = f"request-{next(self._numbers)}"
        self._open[one] = (node, on_item)
        self._nodes.send(node, command(one))

    def hear(self, one: str, item: Any) -> None:
        if found := self._open.get(one):
            if not isinstance(item, Waiting):
                del self._open[one]
            found[1](item)

    def lose(self, node: str, error: PlimsollError) -> None:
        """The node answers nothing any more."""
        for one, (where, _) in list(self._open.items()):
            if where == node:
                self.hear(one, Failed(error))

    def close(self, error: PlimsollError) -> None:
        """No node answers anything any more."""
        for one in list(self._open):
            self.hear(one, Failed(error))


def all_of(count: int, done: Callable[[list[Any]], None]) -> OnItem:
    """Collects ``count`` endings and hands them over together."""
    items: list[Any] = []

    def on_item(item: Any) -> None:
        if not isinstance(item, Waiting):
            items.append(item)
            if len(items) == count:
                done(items)

    return on_item
