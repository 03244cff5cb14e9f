"""Clean-ups: unloading models to free memory. At most one runs at a time."""

import gc
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from plimsoll.actors.memory_view import MemoryView
from plimsoll.actors.pending_unloads import PendingUnloads
from plimsoll.actors.replies import Failed, Reply
from plimsoll.actors.status import CleanupReport
from plimsoll.errors import PlimsollError, Unavailable
from plimsoll.journal import events
from plimsoll.journal.journal import Journal
from plimsoll.memory.ledger import Seat, clean_up_order
from plimsoll.memory.reclaim import Reclaimed
from plimsoll.memory.sample import Level, Sample

# At warning, workers get this time to trim their caches before models are unloaded.
_TRIM_S = 0.3
_AGAIN_S = 5.0
# Frequent health probes of a full machine must not start one clean-up after the other, which would block all loads.
_HEALTH_AGAIN_S = 30.0


def collect_garbage() -> None:
    """Run Python's garbage collector on a thread of its own, so that the Supervisor can go on.

    A collection takes longer the more objects the front end holds.
    """
    threading.Thread(target=gc.collect, name="garbage", daemon=True).start()


class CleanUps:
    """Owned by ``Admission``."""

    def __init__(
        self,
        memory_view: MemoryView,
        pending_unloads: PendingUnloads,
        journal: Journal,
        clock: Callable[[], float],
        *,
        seats: Callable[[], Sequence[Seat]],
        collect: Callable[[], object] = collect_garbage,
    ) -> None:
        """``seats`` lists every living model as it is now; ``collect`` must not block."""
        self._memory_view = memory_view
        self._pending_unloads = pending_unloads
        self._journal = journal
        self._clock = clock
        self._seats = seats
        self._collect = collect
        self.running: CleanUp | None = None
        self._ended_at = self._health_at = -1e9

    def start(
        self,
        *,
        aggressive: bool,
        reason: str,
        while_level: Level | None = None,
        only_idle: bool = False,
        reply: Reply | None = None,
    ) -> None:
        """Begin a clean-up, or join the running one if that unloads at least as much.

        ``while_level``: the clean-up goes on only as long as the newest sample is at that level or above; then models
        that have not stopped stay. ``only_idle``: busy and pinned models leave only while memory is critical.
        """
        kind = _Kind(aggressive, while_level, only_idle)
        sample = self._memory_view.sample
        if sample is None:
            if reply is not None:  # an empty inbox is false
                reply.send(Failed(Unavailable("memory has not been read yet; try again in a second")))
            return
        before = self.running
        if before is None or before.kind.does_less(kind):
            not_before = self._clock() + (_TRIM_S if not aggressive else 0.0)
            self.running = CleanUp(kind, reason, sample, not_before)
            if before:
                self.running.replies = before.replies
                self.running.waiting = before.waiting
            self._journal.record(events.CleanupStarted(aggressive, reason, sample.used_percent))
            if aggressive:
                self._ask_all(self.running)
        if reply is not None and self.running:
            self.running.replies.append(reply)

    def start_for_level(self) -> None:
        """Begin a clean-up at warning, if there is a model to unload."""
        # A warning by the system's pressure alone would not end by unloading idle models.
        due = self._memory_view.is_high and clean_up_order(self._seats(), aggressive=False)
        if due and self.running is None:
            self.start(aggressive=False, reason="high memory use", while_level=Level.WARNING)

    def start_again(self) -> None:
        """Memory is still at warning: clean up again, 5 s after the last clean-up at the earliest."""
        if self._memory_view.sampled_at - self._ended_at > _AGAIN_S:
            self.start_for_level()

    def start_for_critical(self, reason: str, names: Sequence[str]) -> None:
        """These models run though memory is critical: unload them, as part of a running clean-up if there is one."""
        running = self.running
        if running is None or not running.kind.aggressive:
            self.start(aggressive=True, reason=reason, while_level=Level.CRITICAL)
            return
        for seat in self._seats():
            if seat.name in names and seat.name not in running.waiting:
                self._ask(running, seat, Level.CRITICAL)

    def start_for_load(self, model: str, *, aggressive: bool) -> bool:
        """Begin a clean-up before a load; False if there is no model to unload."""
        if not clean_up_order(self._seats(), aggressive=aggressive):
            return False
        level = Level.CRITICAL if aggressive else Level.WARNING
        self.start(aggressive=aggressive, reason=f"before loading {model}", while_level=level)
        if self.running:
            self.running.not_before = 0.0  # a request waits for this load, so don't wait for caches to be trimmed
        return True

    def start_for_death(self, model: str) -> None:
        """A worker died for lack of memory: unload idle models. What it held is back, so running answers may go on."""
        self.start(aggressive=True, reason=f"MemoryError of {model}", only_idle=True)

    def start_for_health(self) -> None:
        """The health was asked for while memory is critical: clean up, at most once in 30 s."""
        now = self._clock()
        if now - self._health_at > _HEALTH_AGAIN_S:
            self._health_at = now
            self.start(aggressive=True, reason="health check at critical memory use", while_level=Level.CRITICAL)

    def gone(self, outcome: Reclaimed) -> None:
        """One model's memory is back, or did not come back in time."""
        if self.running:
            self.running.gone(outcome)

    def stays(self, name: str) -> None:
        """A model that was told to unload has become busy, or held nothing."""
        if self.running:
            self.running.waiting.discard(name)

    def advance(self, sample: Sample) -> bool:
        """Make the running clean-up's next move; True if no clean-up runs any more."""
        running = self.running
        if running is None:
            return True
        if running.waiting:
            return False
        if not running.kind.aggressive:
            if sample.time_s < running.not_before:
                return False
            # Check before each victim: trimmed caches, or the last victim's memory, may have been enough.
            due = running.kind.while_level is None or running.replies or self._memory_view.is_high
            victims = clean_up_order(self._seats(), aggressive=False) if due else []
            if victims:
                running.waiting.add(victims[0].name)
                self._pending_unloads.ask(
                    victims[0],
                    running.reason,
                    if_idle=True,
                    while_level=None if running.replies else running.kind.while_level,
                )
                return False
        self._end(running, sample)
        return True

    def close(self, error: PlimsollError) -> None:
        """The server stops: end the running clean-up with ``error``."""
        if self.running:
            for reply in self.running.replies:
                reply.send(Failed(error))
            self.running = None

    def _ask_all(self, running: "CleanUp") -> None:
        # A model that unloads already may have been given hours; from now on it has the grace of all.
        seats = [*clean_up_order(self._seats(), aggressive=True), *(one for one in self._seats() if one.leaving)]
        for seat in seats:
            if running.kind.only_idle and seat.idle and not seat.pinned:
                running.waiting.add(seat.name)
                self._pending_unloads.ask(seat, running.reason, if_idle=True)
            else:
                self._ask(running, seat, Level.CRITICAL if running.kind.only_idle else running.kind.while_level)

    def _ask(self, running: "CleanUp", seat: Seat, while_level: Level | None) -> None:
        running.waiting.add(seat.name)
        self._pending_unloads.ask(
            seat, running.reason, grace_s=self._memory_view.settings.critical_grace_s, while_level=while_level
        )

    def _end(self, running: "CleanUp", sample: Sample) -> None:
        self.running = None
        self._ended_at = self._clock()
        self._collect()
        report = running.report(sample)
        self._journal.record(
            events.CleanupDone(
                report.aggressive,
                tuple(report.unloaded),
                report.expected_bytes,
                report.freed_bytes,
                report.percent_before,
                report.percent_after,
            )
        )
        for reply in running.replies:
            reply.send(report)


class _Kind(NamedTuple):
    """Which models a clean-up unloads: idle ones, as long as memory is at ``while_level``; None: always.

    An ``aggressive`` clean-up unloads busy and pinned models too; with ``only_idle`` only while memory is critical.
    """

    aggressive: bool
    while_level: Level | None
    only_idle: bool

    def does_less(self, other: "_Kind") -> bool:
        """Whether ``other`` would unload models that this one leaves alone."""
        if not self.aggressive or not other.aggressive:
            return other.aggressive and not self.aggressive
        whatever = self.while_level is not None and other.while_level is None
        return whatever or (self.only_idle and not other.only_idle and other.while_level is None)


class CleanUp:
    """One clean-up: the models it waits for, and what was freed so far.

    ``not_before`` is the sample time from which on it may evict: trimming caches may be enough. A clean-up whose
    ``kind`` has a level ends as soon as memory is below that level. Without a level, or if a caller waits for its
    report, it goes on until only the most recently used model is left, or none.
    """

    def __init__(self, kind: _Kind, reason: str, sample: Sample, not_before: float) -> None:
        self.kind = kind
        self.reason = reason
        self.not_before = not_before
        self.replies: list[Reply] = []
        self.waiting: set[str] = set()
        self._before = sample.used_percent
        self._outcomes: list[Reclaimed] = []

    def gone(self, outcome: Reclaimed) -> None:
        """One model's memory is back, or did not come back in time."""
        if outcome.name in self.waiting:
            self.waiting.discard(outcome.name)
            self._outcomes.append(outcome)

    def report(self, sample: Sample) -> CleanupReport:
        return CleanupReport(
            aggressive=self.kind.aggressive,
            reason=self.reason,
            unloaded=[one.name for one in self._outcomes],
            expected_bytes=sum(one.expected_bytes for one in self._outcomes),
            freed_bytes=sum(one.freed_bytes for one in self._outcomes),
            percent_before=round(self._before, 1),
            percent_after=round(sample.used_percent, 1),
        )
