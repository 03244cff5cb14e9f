"""The models on their way out, until their memory is verifiably back."""

from collections.abc import Callable

import msgspec

from plimsoll.actors.messages import Message, Unload
from plimsoll.actors.outlook import Outlook
from plimsoll.journal import events
from plimsoll.journal.journal import Journal
from plimsoll.memory.plan import Seat
from plimsoll.memory.reclaim import Departure, Reclaimed, begin, judge
from plimsoll.memory.report import out_of_memory


class Departures:
    """Owned by the Supervisor; while any is open no further model is evicted and none is loaded."""

    def __init__(
        self,
        outlook: Outlook,
        journal: Journal,
        clock: Callable[[], float],
        tell: Callable[[str, Message], None],
    ) -> None:
        """``tell`` reaches a living model by its name."""
        self._outlook = outlook
        self._journal = journal
        self._clock = clock
        self._tell = tell
        self._open: dict[str, Departure] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._open

    def __bool__(self) -> bool:
        return bool(self._open)

    def ask(self, seat: Seat, reason: str, *, grace_s: float = 0.0, if_idle: bool = False) -> None:
        """Tell a model to leave."""
        sample = self._outlook.sample
        assert sample is not None  # noqa: S101 - nobody is asked to leave before the first sample
        error = out_of_memory(sample, f"{seat.name} was unloaded ({reason})") if not if_idle else None
        if seat.idle or grace_s == 0:
            self.begin(seat, reason)
        self._tell(seat.name, Unload(reason, grace_s, if_idle, error))

    def begin(self, seat: Seat, reason: str) -> None:
        """A model was told to stop, or has begun to by itself; the first word counts."""
        if (sample := self._outlook.sample) and seat.name not in self._open:
            self._open[seat.name] = begin(seat.name, reason, seat.footprint_bytes, sample, self._clock())

    def drop(self, name: str) -> None:
        """It stays after all, or held nothing."""
        self._open.pop(name, None)

    def exited(self, name: str, reason: str) -> None:
        """The worker whose memory is waited for is reaped; the model itself may stay."""
        if departure := self._open.get(name):
            self._open[name] = msgspec.structs.replace(departure, reason=reason, exited_at=self._clock())

    def settle(self) -> list[Reclaimed]:
        """Close those whose memory is back by the latest sample, or did not come back in time."""
        outlook, names = self._outlook, tuple(self._open)
        if outlook.sample is None:
            return []
        # One after the other: closing one changes what the next is measured by.
        gone = [
            self._close(outcome)
            for name in names
            if (outcome := judge(self._open[name], outlook.sample, outlook.sampled_at))
        ]
        for one in gone:
            self._journal.record(
                events.ModelUnloaded(one.name, one.reason, one.expected_bytes, one.freed_bytes, one.milliseconds)
            )
        return gone

    def _close(self, outcome: Reclaimed) -> Reclaimed:
        """Bytes that are back count for one model only: what this one is credited with, the others are not."""
        source = self._open.pop(outcome.name).source
        others = [one for one in self._open.values() if one.source == source]
        if not others:
            return outcome
        credited = min(outcome.freed_bytes, outcome.expected_bytes)
        for one in others:
            self._open[one.name] = msgspec.structs.replace(one, used_bytes=one.used_bytes - max(0, credited))
        return msgspec.structs.replace(outcome, freed_bytes=credited)
