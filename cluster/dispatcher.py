"""The Dispatcher: the cluster's Supervisor to the front end, and the single owner of what is known of the nodes.

It takes what http tells a Supervisor (``actors/messages.py``) and forwards it. Each node's own Supervisor has the last
word on its memory, so a load that is placed by old figures is refused there and placed anew.
"""

import logging
from collections.abc import Callable
from typing import Any

import msgspec
import pykka

from plimsoll.actors import messages as m
from plimsoll.actors.dead_letters import answer_dead_letters
from plimsoll.actors.messages import State
from plimsoll.actors.slots import shutting_down
from plimsoll.actors.timers import Timers
from plimsoll.catalog import Catalog
from plimsoll.cluster import wire
from plimsoll.cluster.chats import Chats
from plimsoll.cluster.errands import Errands, all_of
from plimsoll.cluster.members import Members
from plimsoll.cluster.messages import FromNode, NodeJoined, NodeLeft, Nodes, Tick
from plimsoll.cluster.orders import Orders, no_node
from plimsoll.cluster.placing import Placing
from plimsoll.cluster.replicas import Rules
from plimsoll.cluster.settings import models_section
from plimsoll.cluster.upkeep import Upkeep
from plimsoll.cluster.whole import whole
from plimsoll.errors import InternalError, WorkerDied
from plimsoll.journal import events
from plimsoll.journal.journal import Journal
from plimsoll.memory.levels import Thresholds

log = logging.getLogger("plimsoll.cluster")

_TICK_S = 1.0
# A node that answers but reports nothing for so long is given up.
_LOST_S = 30.0


class Dispatcher(pykka.ThreadingActor):
    """Places, routes, replicates; knows everything for ``/health``."""

    use_daemon_thread = True

    def __init__(
        self,
        catalog: Catalog,
        nodes: Nodes,
        journal: Journal,
        timers: Timers,
        *,
        thresholds: Thresholds,
        rules: Rules,
        slots: int,
        queue: int,
        critical_grace_s: float,
    ) -> None:
        super().__init__()
        self._nodes = nodes
        self._journal = journal
        self._timers = timers
        self._queue = queue
        self._critical_grace_s = critical_grace_s
        self._closed = False
        self._newest: Callable[[str], wire.Reconfigure] | None = None
        self._members = Members(timers.now, thresholds, slots)
        self._errands = Errands(nodes)
        self._placing = Placing(self._members, self._errands, timers.now)
        self._chats = Chats(nodes, self._members, self._placing, catalog, queue)
        self._upkeep = Upkeep(
            self._members, self._placing, self._errands, catalog=catalog, rules=rules, clock=timers.now
        )
        self._orders = Orders(nodes, self._members, self._placing, self._errands, catalog=catalog, clock=timers.now)
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
            if (reply := getattr(message, "reply", None)) is not None:
                reply.send(m.Failed(InternalError("the server failed on this request; the log says why")))

    def on_stop(self) -> None:
        error = shutting_down()
        self._placing.close(error)
        self._chats.close(error)
        self._errands.close(error)
        answer_dead_letters(self, error)

    # ---- nodes

    def _on_joined(self, message: NodeJoined) -> None:
        self._members.join(message.id, message.name)
        self._journal.record(events.NodeJoined(message.name))
        if self._newest:
            self._errands.ask(message.id, self._newest)

    def _on_items(self, message: FromNode) -> None:
        member = self._members.get(message.id)
        if member is None:
            return  # it was given up before
        for one, item in message.items:
            if isinstance(item, wire.Report):
                self._members.hear(member, item)
                self._placing.step()
                self._upkeep.keep_pinned()
            elif not self._chats.hear(one, item):
                self._errands.hear(one, item)

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
        self._errands.lose(message.id, WorkerDied(f"the node {member.name} was lost: {message.why}", retry_after_s=1.0))
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
        self._upkeep.keep_pinned()
        self._upkeep.balance(self._critical_grace_s)

    # ---- the whole

    def _on_pin(self, message: m.PinModel) -> None:
        if not self._orders.known(message.model, message.reply):
            return
        self._upkeep.pin(message.model, pinned=message.pinned)
        self._upkeep.keep_pinned()
        status = self._orders.status_of(message.model) or m.ModelStatus(message.model, State.COLD)
        message.reply.send(msgspec.structs.replace(status, pinned=message.pinned))

    def _on_get_status(self, message: m.GetStatus) -> None:
        if message.clean_up:
            for member in self._members:
                self._nodes.send(member.id, wire.LookAtMemory())
        problems = [] if any(one.report for one in self._members) else [no_node().message]
        if self._journal.problem:
            problems.append(self._journal.problem)
        message.reply.send(whole(self._members, stopping=self._closed, pinned=self._upkeep.pinned, problems=problems))

    def _on_reconfigure(self, message: m.Reconfigure) -> None:
        section = models_section(message.catalog)

        def command(one: str) -> wire.Reconfigure:
            return wire.Reconfigure(
                one, section, message.thresholds, message.queue, message.critical_grace_s, message.drain_s
            )

        self._newest = command
        self._orders.catalog = self._chats.catalog = message.catalog
        self._members.thresholds = message.thresholds
        self._chats.queue, self._critical_grace_s = message.queue, message.critical_grace_s
        self._upkeep.follow(message.catalog)
        self._upkeep.keep_pinned()
        members = list(self._members)
        collect = all_of(len(members), lambda items: message.reply.send(_first_failure(items)))
        for member in members:
            self._errands.ask(member.id, command, collect)
        if not members:
            message.reply.send(None)

    def _on_stop_all(self, message: m.StopAll) -> None:
        self._closed = self._orders.closed = self._chats.closed = self._upkeep.closed = True
        self._placing.close(shutting_down())
        members = list(self._members)
        collect = all_of(len(members), lambda _: message.reply.send(None))
        for member in members:
            self._errands.ask(member.id, lambda one: wire.Stop(one, message.grace_s), collect)
        if not members:
            message.reply.send(None)


def _first_failure(items: list[Any]) -> m.Failed | None:
    return next((item for item in items if isinstance(item, m.Failed)), None)
