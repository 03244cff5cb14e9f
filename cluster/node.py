"""A node's report about itself, and the figures that decisions take from the report."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

import msgspec

from plimsoll.memory.ledger import Seat, blocker, distance_bytes, in_eviction_order, most_bytes
from plimsoll.memory.memory_errors import gib
from plimsoll.memory.sample import Level, Sample

# A node that has not reported for this long gets nothing new; reports come once a second.
SILENT_S = 5.0


class Traffic(msgspec.Struct, frozen=True, array_like=True):
    """Requests of one model on one node: answered now, waiting, and how many are answered side by side."""

    model: str
    running: int = 0
    queued: int = 0
    slots: int = 1


class NodeView(msgspec.Struct, frozen=True):
    """One node at one moment, as it reports itself.

    ``sent_s`` is on the node's own monotonic clock, as ``last_used`` of its seats; ``last_seen`` on the clock of
    whoever received it, who sets it. ``takes_loads`` is false while its own admission is closed. ``sample`` is None
    when its memory can't be read.
    """

    id: str
    name: str
    sample: Sample | None
    level: Level
    warning_percent: float
    critical_percent: float
    seats: tuple[Seat, ...] = ()
    traffic: tuple[Traffic, ...] = ()
    sent_s: float = 0.0
    last_seen: float = 0.0
    takes_loads: bool = True


class Standing:
    """A node's figures for all decisions until its next report: computed once, read for every model.

    ``booked`` are seats of loads that the node was asked for and has not reported yet; they count as claims.
    ``distance_bytes`` to the critical line is negative where more is granted than there is, ``calm_bytes`` is that to
    the warning line, ``most_bytes`` what an empty node could take, ``busy_bytes`` what models take that load or answer.
    """

    def __init__(self, view: NodeView, booked: Sequence[Seat] = ()) -> None:
        self.view = view
        self.id = view.id
        present = granted(view)
        shown = {seat.name for seat in present}
        self.seats = (*present, *(seat for seat in booked if seat.name not in shown))
        self.models = frozenset(seat.name for seat in self.seats)
        self.closed = _closed(view)
        self.distance_bytes = self.calm_bytes = self.most_bytes = 0
        if view.sample is not None:
            self.distance_bytes = distance_bytes(self.seats, view.sample, view.critical_percent)
            self.calm_bytes = distance_bytes(self.seats, view.sample, view.warning_percent)
            self.most_bytes = most_bytes(view.sample, view.critical_percent)
        self.order = in_eviction_order(self.seats)
        self._gains = list(accumulate(seat.gain_bytes for seat in self.order))
        self._costs = list(accumulate(seat.gain_bytes / max(1.0, self.idle_s(seat)) for seat in self.order))
        self.evictable_bytes = self._gains[-1] if self._gains else 0
        self.leaving_bytes = sum(seat.footprint_bytes for seat in self.seats if seat.leaving)
        self.leaving = frozenset(seat.name for seat in self.seats if seat.leaving)
        self.busy_bytes = sum(seat.gain_bytes for seat in self.seats if seat.comes_free)
        self._blockers: str | None = None

    def booking(self, seat: Seat) -> "Standing":
        """How it stands once it is asked for one load more."""
        return Standing(self.view, (*self.seats, seat))

    def idle_s(self, seat: Seat) -> float:
        """For how long it had not been used when the node reported."""
        return self.view.sent_s - seat.last_used

    def silent(self, now: float) -> bool:
        return now - self.view.last_seen > SILENT_S

    def victims(self, need_bytes: int) -> list[Seat]:
        """Whom the node's own ledger evicts for this, least recently used first; empty where that is not enough."""
        missing = need_bytes - self.distance_bytes
        count = bisect_left(self._gains, missing) + 1
        return self.order[:count] if missing > 0 and count <= len(self.order) else []

    def eviction_cost(self, need_bytes: int) -> float:
        """Bytes to be read again, each model's over its idle seconds: the longer unused, the less likely they are.

        Raises ``IndexError`` where all evictions together are not enough.
        """
        return self._costs[bisect_left(self._gains, need_bytes - self.distance_bytes)]

    @property
    def blockers(self) -> str:
        """Who can't be evicted and why, in words."""
        if self._blockers is None:
            self._blockers = ", ".join(blocker(seat) for seat in self.seats if not seat.evictable)
        return self._blockers


def granted(view: NodeView) -> list[Seat]:
    """Models that hold memory on the node or were promised it, without those that wait for a grant or have failed."""
    return [seat for seat in view.seats if seat.reserved_bytes or seat.footprint_bytes]


def _closed(view: NodeView) -> str:
    """Why the node takes no loads at all, in words; empty where it takes loads."""
    if view.sample is None:
        return "its memory can't be read"
    # By the newest figures: a level that hysteresis still holds says nothing about what fits.
    if view.sample.used_percent >= view.critical_percent:
        binding = view.sample.binding
        return f"memory is at critical, {binding.percent:.1f}% of {gib(binding.total)} used"
    return "" if view.takes_loads else "its own admission is closed"
