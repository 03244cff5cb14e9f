"""Unloads that were ordered, until samples show that the memory is back."""

from collections.abc import Callable

import msgspec

from plimsoll.actors.memory_view import MemoryView
from plimsoll.actors.messages import Message, Unload
from plimsoll.journal import events
from plimsoll.journal.journal import Journal
from plimsoll.memory.ledger import Seat
from plimsoll.memory.memory_errors import out_of_memory
from plimsoll.memory.reclaim import PendingUnload, Reclaimed, begin, judge
from plimsoll.memory.sample import Level


class PendingUnloads:
    """Owned by the Supervisor; while an unload is pending no other model is evicted and none is loaded."""

    def __init__(
        self,
        memory_view: MemoryView,
        journal: Journal,
        clock: Callable[[], float],
        tell: Callable[[str, Message], None],
    ) -> None:
        """``tell`` reaches a living model by its name."""
        self._memory_view = memory_view
        self._journal = journal
        self._clock = clock
        self._tell = tell
        self._open: dict[str, PendingUnload] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._open

    def __bool__(self) -> bool:
        return bool(self._open)

    def ask(
        self,
        seat: Seat,
        reason: str,
        *,
        grace_s: float = 0.0,
        if_idle: bool = False,
        while_level: Level | None = None,
        reload: bool = False,
    ) -> None:
        """Tell a model to unload; with ``while_level`` only as long as memory is at that level or above.

        With ``reload`` it is loaded again at once.
        """
        sample = self._memory_view.sample
        assert sample is not None  # noqa: S101 - nobody is asked to leave before the first sample
        error = out_of_memory(sample, f"{seat.name} was unloaded ({reason})") if not if_idle else None
        if seat.idle or grace_s == 0:
            self.begin(seat, reason)
        # Requests for whose sake memory is freed come back to this model after it.
        self._tell(
            seat.name,
            Unload(reason, grace_s, if_idle, error, if_idle, while_level, pause=not if_idle, reload=reload),
        )

    def begin(self, seat: Seat, reason: str) -> None:
        """A model stops, by order or by itself; the first reason that is given counts."""
        if (sample := self._memory_view.sample) and seat.name not in self._open:
            self._open[seat.name] = begin(seat, reason, sample, self._clock())

    def drop(self, name: str) -> None:
        """The model stays after all, or held nothing."""
        self._open.pop(name, None)

    def exited(self, name: str, reason: str) -> None:
        """The worker process has ended; the model itself may stay."""
        if pending := self._open.get(name):
            self._open[name] = msgspec.structs.replace(pending, reason=reason, exited_at=self._clock())

    def settle(self) -> list[Reclaimed]:
        """End the unloads whose memory is back by the newest sample, or did not come back in time."""
        memory_view, names = self._memory_view, tuple(self._open)
        if memory_view.sample is None:
            return []
        # One at a time: ending an unload changes the figure that the next one is measured by.
        gone = [
            self._close(outcome)
            for name in names
            if (outcome := judge(self._open[name], memory_view.sample, memory_view.sampled_at))
        ]
        for one in gone:
            self._journal.record(
                events.ModelUnloaded(one.name, one.reason, one.expected_bytes, one.freed_bytes, one.milliseconds)
            )
        return gone

    def _close(self, outcome: Reclaimed) -> Reclaimed:
        """Credit freed bytes to one model only: subtract them from what the other pending unloads are measured by."""
        source = self._open.pop(outcome.name).source
        others = [one for one in self._open.values() if one.source == source]
        if not others:
            return outcome
        credited = min(outcome.freed_bytes, outcome.expected_bytes)
        for one in others:
            self._open[one.name] = msgspec.structs.replace(one, used_bytes=one.used_bytes - max(0, credited))
        return msgspec.structs.replace(outcome, freed_bytes=credited)
