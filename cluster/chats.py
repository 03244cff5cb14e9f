"""The clients' requests: each is sent to a replica, or waits in the queue of its model."""

import math
from collections.abc import Callable
from typing import Any

import msgspec

from plimsoll.actors import messages as m
from plimsoll.actors.model_records import shutting_down
from plimsoll.actors.model_requests import with_seed
from plimsoll.actors.replies import Failed, Finished, Tokens, Waiting
from plimsoll.actors.resume import Loss, Resume, after_loss, too_late
from plimsoll.actors.settings import Settings
from plimsoll.catalog.names import Catalog
from plimsoll.cluster import node_protocol
from plimsoll.cluster.fleet import Members
from plimsoll.cluster.node_protocol import Nodes
from plimsoll.cluster.placing import Placing, Want
from plimsoll.cluster.routing import Affinity, beginnings, route
from plimsoll.engine.protocol import ChatRequest, Usage
from plimsoll.errors import InsufficientMemory, PlimsollError, QueueFull, WorkerDied

# A request is sent to at most this many nodes whose own ledgers refuse the load.
_TRIES = 4


class _Open:
    """A request without an ending; ``node`` is where it was sent.

    The client has had what belongs to the ``tokens``, which its present node has sent, and what it takes along from
    nodes that were lost (``resume``). Without a node it waits ``until`` then. ``held`` is what has come behind that: a
    node sends the tokens last, so the two are never apart. ``cancelled``: the client wants no more of it, and the node
    was told.
    """

    __slots__ = ("cancelled", "chat", "held", "keys", "node", "resume", "since", "tokens", "tries", "until")

    def __init__(self, chat: m.Chat, keys: list[bytes], since: float, until: float) -> None:
        self.chat = chat
        self.keys = keys
        self.since = since
        self.until = until
        self.node = ""
        self.tokens: list[int] = []
        self.held: list[Any] = []
        self.resume: Resume | None = None
        self.cancelled = False
        self.tries = 0

    def pass_on(self) -> None:
        """The client gets what was held."""
        for item in self.held:
            self.chat.reply.send(item)
        self.held.clear()


class Chats:
    """Owned by the Dispatcher. ``settings`` say how many requests may wait for a place for one model, and how long."""

    def __init__(
        self,
        nodes: Nodes,
        members: Members,
        placing: Placing,
        catalog: Catalog,
        *,
        settings: Settings,
        clock: Callable[[], float],
    ) -> None:
        self._nodes = nodes
        self._members = members
        self._placing = placing
        self._affinity = Affinity()
        self._open: dict[str, _Open] = {}
        self.catalog = catalog
        self.settings = settings
        self._clock = clock
        self.closed = False

    def on_chat(self, chat: m.Chat) -> None:
        try:
            self.catalog.find(chat.model)
        except PlimsollError as error:
            chat.reply.send(Failed(error))
            return
        messages = chat.request.messages if isinstance(chat.request, ChatRequest) else []
        seeded = msgspec.structs.replace(chat, request=with_seed(chat.request))
        now = self._clock()
        keys = beginnings(chat.model, messages)
        self._open[chat.id] = one = _Open(seeded, keys, now, now + self.settings.patience_s)
        self._dispatch(one)

    def on_cancel(self, message: m.Cancel) -> None:
        one = self._open.get(message.id)
        if one is None:
            return
        if one.node:
            one.cancelled = True
            self._nodes.send(one.node, node_protocol.Cancel(message.id, message.model))
        else:
            self._placing.cancel(message.model, message.id)
            self._end(one, Finished("cancelled", Usage()))

    def hear(self, one_id: str, item: Any) -> bool:
        """Whether the item belongs to a request; it has been passed on."""
        one = self._open.get(one_id)
        if one is None:
            return False
        if isinstance(item, Failed) and self._goes_elsewhere(one, item.error):
            return True
        if isinstance(item, Finished | Failed):
            self._end(one, item)
        elif isinstance(item, Waiting):
            one.chat.reply.send(item)
        elif isinstance(item, Tokens):
            one.tokens += item.ids
            one.pass_on()
        else:
            one.held.append(item)
        return True

    def lose(self, node: str, name: str, why: str) -> tuple[int, Callable[[], None]]:
        """End the node's requests that can't be carried on; how many, and what sends the others on their way again."""
        self._affinity.forget(node)
        lost = [one for one in self._open.values() if one.node == node]
        text = f"the node {name}, which ran this answer, was lost: {why}; send the request again"
        error = WorkerDied(text, retry_after_s=1.0)
        loss = Loss(error, "their node was lost", self._clock(), self.settings.patience_s, died=True)
        again: list[_Open] = []
        for one in lost:
            resume = after_loss(one.resume, one.tokens, loss)
            if resume is None or one.cancelled or self.closed:
                one.held.clear()
                self._end(one, Failed(error))
            else:
                one.resume, one.node, one.tokens = resume, "", []
                one.since, one.until = resume.since, resume.until
                one.held.clear()
                one.chat.reply.send(Waiting("resume"))
                again.append(one)

        def send_again() -> None:
            for one in again:
                self._dispatch(one)

        return len(lost) - len(again), send_again

    def look_again(self) -> None:
        """Place the requests anew that lost their node and found no other; they end when their time is over."""
        now = self._clock()
        for one in [one for one in self._open.values() if one.resume and not one.node]:
            assert one.resume  # noqa: S101 - chosen by it
            if now >= one.until:
                self._placing.cancel(one.chat.model, one.chat.id)
                self._end(one, Failed(too_late(one.resume.error, now - one.since)))
            elif not self._placing.has(one.chat.model, one.chat.id):
                self._dispatch(one)

    def fail(self, one_id: str, error: PlimsollError) -> bool:
        """Whether that request was open; it has ended with ``error``, and a node that has it is told to stop."""
        one = self._open.get(one_id)
        if one is None:
            return False
        if one.node:
            self._nodes.send(one.node, node_protocol.Cancel(one_id, one.chat.model))
        else:
            self._placing.cancel(one.chat.model, one_id)
        self._end(one, Failed(error))
        return True

    def close(self, error: PlimsollError) -> None:
        """Fail whatever is still open."""
        for one in list(self._open.values()):
            self._end(one, Failed(error))

    def _dispatch(self, one: _Open) -> None:
        model = one.chat.model
        found = route(self._placing.replicas(model), self._affinity.find(one.keys))
        if self.closed:
            self._end(one, Failed(shutting_down()))
        elif found:
            self._send(one, found.node)
        elif one.resume is None and (waiting := self._placing.waiting(model)) >= self.settings.queue:
            text = f"{waiting} requests wait for a place for {model}; try again shortly"
            self._end(one, Failed(QueueFull(text, retry_after_s=1.0)))
        else:
            if one.resume is None:
                one.chat.reply.send(Waiting("queue"))

            def fail(error: PlimsollError) -> None:
                self._has_no_place(one, error)

            self._placing.want(model, Want(one.chat.id, lambda node: self._send(one, node), fail, one.until))

    def _has_no_place(self, one: _Open, error: PlimsollError) -> None:
        """Who has lost a node waits until there is one, and is looked at again once a second."""
        now = self._clock()
        if one.resume and not self.closed and now < one.until < math.inf:
            return
        waited = self.settings.patience_s > 0 and now >= one.until
        self._end(one, Failed(too_late(error, now - one.since) if waited else error))

    def _send(self, one: _Open, node: str) -> None:
        chat = one.chat
        one.node = node
        self._members.fleet.sent(node, chat.model)
        self._affinity.remember(one.keys, node)
        so_far = one.resume.tokens if one.resume else ()
        self._nodes.send(node, node_protocol.Chat(chat.id, chat.model, chat.request, so_far))

    def _goes_elsewhere(self, one: _Open, error: PlimsollError) -> bool:
        """A node's own ledger has the last word; where it refuses, another one may have room."""
        begun = one.tokens or one.held
        if begun or one.cancelled or self.closed or (one.tries >= _TRIES and one.resume is None):
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

    def _end(self, one: _Open, ending: Finished | Failed) -> None:
        if self._open.pop(one.chat.id, None):
            one.pass_on()
            one.chat.reply.send(ending)
