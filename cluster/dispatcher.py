"""The Dispatcher: the cluster's Supervisor to the front end, and the single owner of what is known of the nodes.

It takes what http tells a Supervisor (``actors/messages.py``) and forwards it. Each node's own Supervisor has the last
word on its memory, so a load that is placed by old figures is refused there and placed anew.
"""

import logging
from collections.abc import Callable
from typing import Any

import msgspec

from plimsoll.actors import messages as m
from plimsoll.actors.messages import Actor, reply_of
from plimsoll.actors.model_records import shutting_down
from plimsoll.actors.replies import Failed
from plimsoll.actors.settings import Settings
from plimsoll.actors.status import ModelStatus, State
from plimsoll.actors.timers import Timers
from plimsoll.catalog.names import Catalog
from plimsoll.cluster import node_protocol
from plimsoll.cluster.admin_requests import Orders, no_node
from plimsoll.cluster.chats import Chats
from plimsoll.cluster.cluster_status import whole
from plimsoll.cluster.fleet import Members
from plimsoll.cluster.node_protocol import FromNode, NodeJoined, NodeLeft, Nodes, Tick
from plimsoll.cluster.node_requests import NodeRequests, all_of
from plimsoll.cluster.node_server import models_section
from plimsoll.cluster.placing import Placing
from plimsoll.cluster.replica_upkeep import Upkeep
from plimsoll.cluster.replicas import Rules
from plimsoll.errors import InternalError, WorkerDied
from plimsoll.journal import events
from plimsoll.journal.journal import Journal

log = logging.getLogger("plimsoll.cluster")

_TICK_S = 1.0
# A node that answers but sends no report for this long is given up.
_LOST_S = 30.0


class Dispatcher(Actor):
    """Places, routes, replicates; knows everything for ``/health``."""

    def __init__(
        self,
        catalog: Catalog,
        nodes: Nodes,
        journal: Journal,
        timers: Timers,
        *,
        settings: Settings,
        rules: Rules,
        slots: int,
    ) -> None:
        super().__init__()
        self._nodes = nodes
        self._journal = journal
        self._timers = timers
        self._settings = settings
        self._closed = False
        self._newest: Callable[[str], node_protocol.Reconfigure] | None = None
        self._members = Members(timers.now, settings.thresholds, slots)
        self._node_requests = NodeRequests(nodes)
        self._placing = Placing(self._members, self._node_requests, timers.now)
        self._chats = Chats(nodes, self._members, self._placing, catalog, settings=settings, clock=timers.now)
        self._upkeep = Upkeep(
            self._members, self._placing, self._node_requests, catalog=catalog, rules=rules, clock=timers.now
        )
        self._orders = Orders(
            nodes,
            self._members,
            self._placing,
            self._node_requests,
            catalog=catalog,
            patience_s=settings.patience_s,
            clock=timers.now,
        )
        self._handlers: dict[type, Callable[[Any], object]] = {
            FromNode: self._on_items,
            m.Chat: self._chats.on_chat,
            m.Cancel: self._chats.on_cancel,
            m.KeepAlive: self._orders.on_keep_alive,
            m.GetStatus: self._on_get_status,
            m.LoadModel: self._orders.on_load,
            m.UnloadModel: self._orders.on_unload,
            m.PinModel: self._on_pin,
            m.CleanUpModels: self._orders.on_clean_up,
            m.PlanLoad: self._orders.on_plan,
            m.Reconfigure: self._on_reconfigure,
            m.StopAll: self._on_stop_all,
            NodeJoined: self._on_joined,
            NodeLeft: self._on_left,
            Tick: self._on_tick,
        }

    def on_start(self) -> None:
        self._timers.tell_later(_TICK_S, self.actor_ref, Tick())

    def on_receive(self, message: Any) -> None:
        try:
            self._handlers[type(message)](message)
        except Exception:
            # As the Supervisor: one bad message must not end the server.
            log.exception("the dispatcher failed on %s", type(message).__name__)
            error = InternalError("the server failed on this request; the log says why")
            if isinstance(message, m.Chat) and self._chats.fail(message.id, error):
                return
            if (reply := reply_of(message)) is not None:
                reply.send(Failed(error))

    def on_stop(self) -> None:
        error = shutting_down()
        self._placing.close(error)
        self._chats.close(error)
        self._node_requests.close(error)
        self.close_mailbox(error)

    # ---- nodes

    def _on_joined(self, message: NodeJoined) -> None:
        self._members.join(message.id, message.name)
        self._journal.record(events.NodeJoined(message.name))
        if self._newest:
            self._node_requests.ask(message.id, self._newest)

    def _on_items(self, message: FromNode) -> None:
        member = self._members.get(message.id)
        if member is None:
            return  # it was given up before
        for one, item in message.items:
            if isinstance(item, node_protocol.Report):
                self._members.hear(member, item)
                self._placing.step()
                self._upkeep.keep_pinned()
            elif not self._chats.hear(one, item):
                self._node_requests.hear(one, item)

    def _on_left(self, message: NodeLeft) -> None:
        left = self._members.leave(message.id)
        if left is None:
            return
        member, view = left
        ended, send_again = self._chats.lose(message.id, member.name, message.why)
        if not self._closed:
            self._journal.record(events.NodeLost(member.name, message.why, ended))
            if view:
                self._upkeep.restore(view)
        self._node_requests.lose(
            message.id, WorkerDied(f"the node {member.name} was lost: {message.why}", retry_after_s=1.0)
        )
        send_again()
        # Whoever waited for memory that this node was giving back waits for something else now, or for nothing.
        self._placing.step()

    def _on_tick(self, _: Tick) -> None:
        self._timers.tell_later(_TICK_S, self.actor_ref, Tick())
        if self._closed:
            return  # nodes that stop report no more, and their running answers may take longer than any silence
        now = self._timers.now()
        for view in self._members.fleet.silent(now):
            if now - view.last_seen > _LOST_S:
                self._nodes.drop(view.id, f"it has not reported for {_LOST_S:.0f} s")
        self._chats.look_again()
        self._upkeep.keep_pinned()
        self._upkeep.balance(self._settings.critical_grace_s)

    # ---- the whole

    def _on_pin(self, message: m.PinModel) -> None:
        if not self._orders.known(message.model, message.reply):
            return
        self._upkeep.pin(message.model, pinned=message.pinned)
        self._upkeep.keep_pinned()
        status = self._orders.status_of(message.model) or ModelStatus(message.model, State.COLD)
        message.reply.send(msgspec.structs.replace(status, pinned=message.pinned))

    def _on_get_status(self, message: m.GetStatus) -> None:
        if message.clean_up:
            for member in self._members:
                self._nodes.send(member.id, node_protocol.LookAtMemory())
        problems = [] if any(one.report for one in self._members) else [no_node().message]
        if self._journal.problem:
            problems.append(self._journal.problem)
        message.reply.send(whole(self._members, stopping=self._closed, pinned=self._upkeep.pinned, problems=problems))

    def _on_reconfigure(self, message: m.Reconfigure) -> None:
        section = models_section(message.catalog)

        def command(one: str) -> node_protocol.Reconfigure:
            return node_protocol.Reconfigure(one, section, message.settings, message.drain_s)

        self._newest = command
        self._orders.catalog = self._chats.catalog = message.catalog
        self._settings = message.settings
        self._members.thresholds, self._chats.settings = message.settings.thresholds, message.settings
        self._orders.patience_s = message.settings.patience_s
        self._upkeep.follow(message.catalog)
        self._upkeep.keep_pinned()
        members = list(self._members)
        collect = all_of(len(members), lambda items: message.reply.send(_first_failure(items)))
        for member in members:
            self._node_requests.ask(member.id, command, collect)
        if not members:
            message.reply.send(None)

    def _on_stop_all(self, message: m.StopAll) -> None:
        self._closed = self._orders.closed = self._chats.closed = self._upkeep.closed = True
        self._placing.close(shutting_down())
        members = list(self._members)
        collect = all_of(len(members), lambda _: message.reply.send(None))
        for member in members:
            self._node_requests.ask(member.id, lambda one: node_protocol.Stop(one, message.grace_s), collect)
        if not members:
            message.reply.send(None)


def _first_failure(items: list[Any]) -> Failed | None:
    return next((item for item in items if isinstance(item, Failed)), None)
