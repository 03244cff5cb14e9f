"""All nodes as they last reported: figures once per report, replicas kept by model name. Belongs to one owner."""

from collections.abc import Collection, Sequence

import msgspec

from plimsoll.cluster.node import NodeView, Standing, granted
from plimsoll.cluster.routing import Replica
from plimsoll.memory.plan import Seat

# A node that was asked for a load and has not shown it after this long never will: it refused or failed.
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
