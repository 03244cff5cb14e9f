"""The nodes that are there, each with its latest report: the Dispatcher's view of the cluster."""

from collections.abc import Callable, Iterator

from plimsoll.actors.messages import State
from plimsoll.cluster.fleet import Fleet
from plimsoll.cluster.node import NodeView, Traffic
from plimsoll.cluster.wire import Report
from plimsoll.memory.levels import Thresholds

# A model that its node keeps no worker for, and will not load by itself.
_ABSENT = frozenset({State.COLD, State.FAILED, State.STOPPED})


class Member:
    """One life of a node; ``ahead_s`` is what this machine's monotonic clock shows more than the node's."""

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
    """What decisions need of a report. What its worker has beyond ``slots`` waits there, so it counts as queued."""
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
