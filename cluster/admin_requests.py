"""What administrators ask: load, unload, pin, clean up, plan; each goes to every node that it concerns."""

from collections.abc import Callable, Sequence
from typing import Any

from plimsoll.actors import messages as m
from plimsoll.actors.model_records import shutting_down
from plimsoll.actors.replies import Failed, Reply
from plimsoll.actors.status import SERVING, CleanupReport, ModelStatus, State
from plimsoll.catalog.names import Catalog
from plimsoll.cluster import node_protocol
from plimsoll.cluster.cluster_status import local, merged
from plimsoll.cluster.fleet import Member, Members
from plimsoll.cluster.node import Standing
from plimsoll.cluster.node_protocol import Nodes
from plimsoll.cluster.node_requests import NodeRequests, all_of
from plimsoll.cluster.placement import place
from plimsoll.cluster.placing import Placing, Want
from plimsoll.errors import PlimsollError, Unavailable
from plimsoll.memory.ledger import Decision, Need, Plan, foresee, plan


class Orders:
    """Owned by the Dispatcher. A load waits ``patience_s`` for models that load or answer to make room."""

    def __init__(
        self,
        nodes: Nodes,
        members: Members,
        placing: Placing,
        node_requests: NodeRequests,
        *,
        catalog: Catalog,
        patience_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._nodes = nodes
        self._members = members
        self._placing = placing
        self._node_requests = node_requests
        self._clock = clock
        self.catalog = catalog
        self.patience_s = patience_s
        self.closed = False

    def _holders(self, model: str) -> list[Member]:
        """The nodes on which the model has an actor."""
        return [one for one in self._members if one.report and any(model == s.name for s in one.report.status.models)]

    def status_of(self, model: str) -> ModelStatus | None:
        found = [
            local(member, status)
            for member in self._holders(model)
            for status in (member.report.status.models if member.report else ())
            if status.name == model
        ]
        return merged(found) if found else None

    def on_keep_alive(self, message: m.KeepAlive) -> None:
        for member in self._holders(message.model):
            self._nodes.send(member.id, node_protocol.KeepAlive(message.model, message.seconds))

    def on_load(self, message: m.LoadModel) -> None:
        name = message.model
        if not self.known(name, message.reply):
            return
        status = self.status_of(name)
        if status and status.state in SERVING:
            message.reply.send(status)
            return

        def go(node: str) -> None:
            self._node_requests.ask(node, lambda one: node_protocol.Load(one, name), lambda item: heard(node, item))

        def heard(node: str, item: Any) -> None:
            if isinstance(item, ModelStatus) and (member := self._members.get(node)):
                message.reply.send(local(member, item))
                return
            if isinstance(item, Failed):
                self._placing.refused(name, node, item.error.message)
            message.reply.send(item)

        until = self._clock() + self.patience_s
        self._placing.want(name, Want("", go, lambda error: message.reply.send(Failed(error)), until))

    def on_unload(self, message: m.UnloadModel) -> None:
        name, holders = message.model, self._holders(message.model)
        if not holders:
            if self.known(name, message.reply):
                message.reply.send(ModelStatus(name, State.COLD))
            return

        def done(items: list[Any]) -> None:
            failed = next((item for item in items if isinstance(item, Failed)), None)
            message.reply.send(failed or ModelStatus(name, State.STOPPED))

        collect = all_of(len(holders), done)
        for member in holders:
            self._node_requests.ask(member.id, lambda one: node_protocol.Unload(one, name, message.grace_s), collect)

    def on_clean_up(self, message: m.CleanUpModels) -> None:
        members = list(self._members)
        if not members:
            message.reply.send(Failed(no_node()))
            return

        def done(items: list[Any]) -> None:
            reports = [item for item in items if isinstance(item, CleanupReport)]
            if not reports:
                message.reply.send(items[0])
                return
            message.reply.send(
                CleanupReport(
                    message.aggressive,
                    reports[0].reason,
                    [name for one in reports for name in one.unloaded],
                    sum(one.expected_bytes for one in reports),
                    sum(one.freed_bytes for one in reports),
                    max(one.percent_before for one in reports),
                    max(one.percent_after for one in reports),
                )
            )

        collect = all_of(len(members), done)
        for member in members:
            self._node_requests.ask(member.id, lambda one: node_protocol.CleanUp(one, message.aggressive), collect)

    def on_plan(self, message: m.PlanLoad) -> None:
        fleet, name = self._members.fleet, message.model
        self._placing.needs[name] = message.needs
        answer = place(name, message.needs, fleet.nodes, self._clock(), avoid=self._placing.avoided(name))
        if answer.placed and answer.need and answer.plan:
            node = next(one for one in fleet.nodes if one.id == answer.node)
            message.reply.send(Decision(answer.need, answer.plan, _granted(message.needs, answer.need, name, node)))
            return
        open_ones = [one for one in fleet.nodes if one.view.sample]
        if not open_ones:
            message.reply.send(Failed(no_node()))
            return
        best, need = max(open_ones, key=lambda one: one.distance_bytes), message.needs[-1]
        others = [seat for seat in best.seats if seat.name != name]
        assert best.view.sample is not None  # noqa: S101 - asked for above
        found: Plan = plan(need.total_bytes, others, best.view.sample, best.view.critical_percent)
        message.reply.send(Decision(need, found))

    def known(self, name: str, reply: Reply) -> bool:
        try:
            self.catalog.find(name)
            if self.closed:
                raise shutting_down()
        except PlimsollError as error:
            reply.send(Failed(error))
            return False
        return True


def _granted(needs: Sequence[Need], placed: Need, model: str, node: Standing) -> Need | None:
    """The bytes that the node will grant once running unloads have ended."""
    if node.view.sample is None:
        return placed
    seats = [seat for seat in node.seats if seat.name != model]
    return foresee(needs, seats, node.view.sample, node.view.critical_percent).granted


def no_node() -> PlimsollError:
    """The error while no node has reported."""
    return Unavailable(
        "no node is there: start one with ray start and --resources='{\"plimsoll_mib\": MIB}'", retry_after_s=5.0
    )
