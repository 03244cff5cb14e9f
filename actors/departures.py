"""The models on their way out, until their memory is verifiably back."""

import msgspec

from plimsoll.memory.reclaim import Departure, Reclaimed, begin, judge
from plimsoll.memory.sample import Sample


class Departures:
    """Owned by the Supervisor; while any is open no further model is evicted and none is loaded."""

    def __init__(self) -> None:
        self._open: dict[str, Departure] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._open

    def __bool__(self) -> bool:
        return bool(self._open)

    def begin(self, name: str, reason: str, expected_bytes: int, sample: Sample, now: float) -> None:
        """``name`` was told to stop, or says that it stops; the first word counts."""
        if name not in self._open:
            self._open[name] = begin(name, reason, expected_bytes, sample, now)

    def drop(self, name: str) -> None:
        """It stays after all, or held nothing."""
        self._open.pop(name, None)

    def exited(self, name: str, reason: str, now: float) -> None:
        """Its process was reaped."""
        if departure := self._open.get(name):
            self._open[name] = msgspec.structs.replace(departure, reason=reason, exited_at=now)

    def settle(self, sample: Sample, now: float) -> list[Reclaimed]:
        """Close those whose memory is back by ``sample``, or did not come back in time."""
        names = tuple(self._open)
        # One after the other: closing one changes what the next is measured by.
        return [self._close(outcome) for name in names if (outcome := judge(self._open[name], sample, now))]

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
