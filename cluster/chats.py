"""The clients' requests on their way: to a replica, or into the line of those that wait for a place."""

from collections.abc import Callable
from typing import Any

from plimsoll.actors import messages as m
from plimsoll.actors.slots import shutting_down
from plimsoll.catalog import Catalog
from plimsoll.cluster import wire
from plimsoll.cluster.affinity import Affinity, beginnings
from plimsoll.cluster.members import Members
from plimsoll.cluster.messages import Nodes
from plimsoll.cluster.placing import Placing, Want
from plimsoll.cluster.routing import route
from plimsoll.engine.protocol import ChatRequest, Usage
from plimsoll.errors import InsufficientMemory, PlimsollError, QueueFull, WorkerDied

# How many nodes a request is sent to whose own ledgers refuse the load.
_TRIES = 4


class _Open:
    """A request without an ending; ``node`` is where it was sent.

    ``touched``: the client has had some of it; ``cancelled``: it wants no more of it, and the node was told.
    """

    __slots__ = ("cancelled", "chat", "keys", "node", "touched", "tries")

    def __init__(self, chat: m.Chat, keys: list[bytes]) -> None:
        self.chat = chat
        self.keys = keys
        self.node = ""
        self.touched = False
        self.cancelled = False
        self.tries = 0


class Chats:
    """Owned by the Dispatcher. ``queue`` is how many requests may wait for a place for one model."""

    def __init__(self, nodes: Nodes, members: Members, placing: Placing, catalog: Catalog, queue: int) -> None:
        self._nodes = nodes
        self._members = members
        self._placing = placing
        self._affinity = Affinity()
        self._open: dict[str, _Open] = {}
        self.catalog = catalog
        self.queue = queue
        self.closed = False

    def on_chat(self, chat: m.Chat) -> None:
        try:
            self.catalog.find(chat.model)
        except PlimsollError as error:
            chat.reply.send(m.Failed(error))
            return
        messages = chat.request.messages if isinstance(chat.request, ChatRequest) else []
        self._open[chat.id] = one = _Open(chat, beginnings(chat.model, messages))
        self._dispatch(one)

    def on_cancel(self, message: m.Cancel) -> None:
        one = self._open.get(message.id)
        if one is None:
            return
        if one.node:
            one.cancelled = True
            self._nodes.send(one.node, wire.Cancel(message.id, message.model))
        else:
            self._placing.cancel(message.model, message.id)
            self._end(one, m.Finished("cancelled", Usage()))

    def hear(self, one_id: str, item: Any) -> bool:
        """Whether the item belongs to a request; it has been passed on."""
        one = self._open.get(one_id)
        if one is None:
            return False
        if isinstance(item, m.Failed) and self._goes_elsewhere(one, item.error):
            return True
        if isinstance(item, m.Finished | m.Failed):
            self._end(one, item)
        else:
            one.touched = one.touched or not isinstance(item, m.Waiting)
            one.chat.reply.send(item)
        return True

    def lose(self, node: str, name: str, why: str) -> tuple[int, Callable[[], None]]:
        """End the node's requests that have begun; how many, and what sends the others on their way again."""
        self._affinity.forget(node)
        lost = [one for one in self._open.values() if one.node == node]
        again = [one for one in lost if not (one.touched or one.cancelled or one.chat.retried or self.closed)]
        for one in lost:
            if one not in again:
                text = f"the node {name}, which ran this answer, was lost: {why}; send the request again"
                self._end(one, m.Failed(WorkerDied(text, retry_after_s=1.0)))

        def send_again() -> None:
            for one in again:
                chat = one.chat
                one.chat = m.Chat(chat.id, chat.model, chat.request, chat.reply, retried=True)
                one.node = ""
                self._dispatch(one)

        return len(lost) - len(again), send_again

    def close(self, error: PlimsollError) -> None:
        """Fail whatever is still open."""
        for one in list(self._open.values()):
            self._end(one, m.Failed(error))

    def _dispatch(self, one: _Open) -> None:
        model = one.chat.model
        found = route(self._placing.replicas(model), self._affinity.find(one.keys))
        if self.closed:
            self._end(one, m.Failed(shutting_down()))
        elif found:
            self._send(one, found.node)
        elif (waiting := self._placing.waiting(model)) >= self.queue:
            text = f"{waiting} requests wait for a place for {model}; try again shortly"
            self._end(one, m.Failed(QueueFull(text, retry_after_s=1.0)))
        else:
            one.chat.reply.send(m.Waiting("queue"))
            want = Want(one.chat.id, lambda node: self._send(one, node), lambda error: self._end(one, m.Failed(error)))
            self._placing.want(model, want)

    def _send(self, one: _Open, node: str) -> None:
        chat = one.chat
        one.node = node
        self._members.fleet.sent(node, chat.model)
        self._affinity.remember(one.keys, node)
        self._nodes.send(node, wire.Chat(chat.id, chat.model, chat.request, chat.retried))

    def _goes_elsewhere(self, one: _Open, error: PlimsollError) -> bool:
        """A node's own ledger has the last word; where it refuses, another one may have room."""
        if one.touched or one.cancelled or self.closed or one.tries >= _TRIES:
            return False
        if not isinstance(error, InsufficientMemory):
            return False
        if any(replica.ready and replica.node == one.node for replica in self._placing.replicas(one.chat.model)):
            return False  # what is loaded there refused the request itself
        self._placing.refused(one.chat.model, one.node, error.message)
        one.tries += 1
        one.node = ""
        self._dispatch(one)
        return True

    def _end(self, one: _Open, ending: m.Finished | m.Failed) -> None:
        if self._open.pop(one.chat.id, None):
            one.chat.reply.send(ending)
