"""All nodes as they last reported: figures once per report, replicas kept by model name. Belongs to one owner."""

from collections.abc import Callable, Collection, Iterator, Sequence

import msgspec

from plimsoll.actors.status import State
from plimsoll.cluster.node import NodeView, Standing, Traffic, granted
from plimsoll.cluster.node_protocol import Report
from plimsoll.cluster.routing import Replica
from plimsoll.memory.ledger import Seat
from plimsoll.memory.levels import Thresholds

# A load that does not show in the node's reports after this long was refused or has failed.
BOOKED_S = 30.0


class Fleet:
    """Knows each node's ``Standing`` and each model's replicas. ``now`` is on the owner's monotonic clock."""

    def __init__(self) -> None:
        self._standings: dict[str, Standing] = {}
        self._replicas: dict[str, dict[str, Replica]] = {}
        self._booked: dict[str, dict[str, tuple[Seat, float]]] = {}

    @property
    def nodes(self) -> Collection[Standing]:
        return self._standings.values()

    def node(self, node: str) -> Standing | None:
        return self._standings.get(node)

    def replicas(self, model: str) -> Sequence[Replica]:
        """Where it is loaded or being loaded, what leaves left out."""
        return list(self._replicas.get(model, {}).values())

    def report(self, view: NodeView, now: float) -> None:
        """A node has told how it stands; what it was asked for and shows now is no longer booked."""
        reported = {seat.name for seat in granted(view)}
        booked = self._booked.get(view.id, {})
        self._booked[view.id] = {
            name: one for name, one in booked.items() if name not in reported and now - one[1] < BOOKED_S
        }
        self._drop_replicas(view.id)
        self._stand(msgspec.structs.replace(view, last_seen=now))
        self._add_replicas(self._standings[view.id])

    def book(self, node: str, model: str, size_bytes: int, now: float) -> None:
        """The node is asked to load it: counts as granted until its report shows it, or for half a minute."""
        view = self._standings[node].view
        seat = Seat(model, size_bytes, loaded=False, running=False, last_used=view.sent_s)
        self._booked[node][model] = (seat, now)
        self._stand(view)
        self._replicas.setdefault(model, {})[node] = Replica(node, ready=False)

    def unbook(self, node: str, model: str) -> None:
        """The node said that it does not load it."""
        if self._booked.get(node, {}).pop(model, None) is not None:
            self._stand(self._standings[node].view)
            self._drop_replica(node, model)

    def sent(self, node: str, model: str) -> None:
        """A request is on its way there: counts as queued until the next report."""
        if replica := self._replicas.get(model, {}).get(node):
            self._replicas[model][node] = msgspec.structs.replace(replica, queued=replica.queued + 1)

    def silent(self, now: float) -> list[NodeView]:
        """Nodes that have not reported for too long."""
        return [one.view for one in self._standings.values() if one.silent(now)]

    def lose(self, node: str) -> NodeView | None:
        """Forget the node; what it last reported, for ``after_loss``."""
        self._drop_replicas(node)
        self._booked.pop(node, None)
        standing = self._standings.pop(node, None)
        return standing.view if standing else None

    def _stand(self, view: NodeView) -> None:
        self._standings[view.id] = Standing(view, [seat for seat, _ in self._booked[view.id].values()])

    def _add_replicas(self, standing: Standing) -> None:
        traffic = {one.model: (one.running, one.queued, one.slots) for one in standing.view.traffic}
        for seat in standing.seats:
            if not seat.leaving:
                counts = traffic.get(seat.name, (0, 0, 1))
                self._replicas.setdefault(seat.name, {})[standing.id] = Replica(standing.id, *counts, seat.loaded)

    def _drop_replicas(self, node: str) -> None:
        standing = self._standings.get(node)
        for model in standing.models if standing else ():
            self._drop_replica(node, model)

    def _drop_replica(self, node: str, model: str) -> None:
        holders = self._replicas.get(model, {})
        holders.pop(node, None)
        if not holders:
            self._replicas.pop(model, None)


# States of a model without a worker on its node, which the node will not load by itself.
_ABSENT = frozenset({State.COLD, State.FAILED, State.STOPPED})


class Member:
    """One life of a node; ``ahead_s`` is this machine's monotonic clock minus the node's."""

    def __init__(self, one: str, name: str) -> None:
        self.id = one
        self.name = name
        self.report: Report | None = None
        self.ahead_s = 0.0


class Members:
    """Owned by the Dispatcher. ``fleet`` has the figures, this the reports as they came.

    ``slots`` is how many answers a model generates side by side.
    """

    def __init__(self, clock: Callable[[], float], thresholds: Thresholds, slots: int) -> None:
        self._clock = clock
        self._members: dict[str, Member] = {}
        self._slots = slots
        self.thresholds = thresholds
        self.fleet = Fleet()

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def get(self, node: str) -> Member | None:
        return self._members.get(node)

    def join(self, node: str, name: str) -> None:
        self._members[node] = Member(node, name)

    def hear(self, member: Member, report: Report) -> None:
        """Go by this report of the node from now on."""
        now = self._clock()
        member.report, member.ahead_s = report, now - report.sent_s
        self.fleet.report(view_of(member, report, self.thresholds, self._slots), now)

    def leave(self, node: str) -> tuple[Member, NodeView | None] | None:
        """Forget the node; what was known of it, None for one that is not known."""
        member = self._members.pop(node, None)
        return (member, self.fleet.lose(node)) if member else None


def view_of(member: Member, report: Report, thresholds: Thresholds, slots: int) -> NodeView:
    """What decisions need of a report. Requests beyond the worker's ``slots`` wait there, so they count as queued."""
    status = report.status
    absent = {one.name for one in status.models if one.state in _ABSENT}
    return NodeView(
        member.id,
        member.name,
        status.sample,
        status.level,
        thresholds.warning,
        thresholds.critical,
        seats=tuple(seat for seat in status.seats if seat.name not in absent),
        traffic=tuple(
            Traffic(one.name, min(one.active, slots), one.queued + max(0, one.active - slots), slots)
            for one in status.models
        ),
        sent_s=report.sent_s,
        takes_loads=status.admission == "open",
    )
