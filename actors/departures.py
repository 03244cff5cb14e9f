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
        outcomes = [outcome for one in self._open.values() if (outcome := judge(one, sample, now))]
        for outcome in outcomes:
            del self._open[outcome.name]
        return outcomes
