"""Clean-ups: at most one runs, from its start to its report."""

import gc
from collections.abc import Callable, Sequence

from plimsoll.actors.departures import Departures
from plimsoll.actors.messages import CleanupReport, Failed, Reply
from plimsoll.actors.outlook import Outlook
from plimsoll.errors import PlimsollError, Unavailable
from plimsoll.journal import events
from plimsoll.journal.journal import Journal
from plimsoll.memory.plan import Seat, clean_up_order
from plimsoll.memory.reclaim import Reclaimed
from plimsoll.memory.sample import Sample

# What trimming the caches gets before models are unloaded at warning.
_TRIM_S = 0.3
_AGAIN_S = 5.0
# A prober that asks for the health of a full machine must not keep it from ever loading anything.
_HEALTH_AGAIN_S = 30.0


class CleanUps:
    """Owned by ``Admission``; ``grace_s`` is what busy models get by an aggressive one."""

    def __init__(
        self,
        outlook: Outlook,
        departures: Departures,
        journal: Journal,
        clock: Callable[[], float],
        *,
        seats: Callable[[], Sequence[Seat]],
        grace_s: float,
    ) -> None:
        """``seats`` lists every living model as it is now."""
        self._outlook = outlook
        self._departures = departures
        self._journal = journal
        self._clock = clock
        self._seats = seats
        self.grace_s = grace_s
        self.running: CleanUp | None = None
        self._ended_at = self._health_at = -1e9

    def start(self, *, aggressive: bool, reason: str, reply: Reply | None = None) -> None:
        """Begin one, or join the running one if that does at least as much."""
        sample = self._outlook.sample
        if sample is None:
            if reply is not None:  # an empty inbox is false
                reply.send(Failed(Unavailable("memory has not been read yet; try again in a second")))
            return
        before = self.running
        if before is None or (aggressive and not before.aggressive):
            not_before = self._clock() + (_TRIM_S if not aggressive else 0.0)
            self.running = CleanUp(aggressive=aggressive, reason=reason, sample=sample, not_before=not_before)
            if before:
                self.running.replies = before.replies
                self.running.waiting = before.waiting
            self._journal.record(events.CleanupStarted(aggressive, reason, sample.used_percent))
            if aggressive:
                self._ask_all(self.running)
        if reply is not None and self.running:
            self.running.replies.append(reply)

    def start_for_level(self) -> None:
        """At warning, where there is anybody to unload."""
        if self.running is None and clean_up_order(self._seats(), aggressive=False):
            self.start(aggressive=False, reason="high memory use")

    def start_again(self) -> None:
        """It is still at warning: not again within 5 s of the last one."""
        if self._outlook.sampled_at - self._ended_at > _AGAIN_S:
            self.start_for_level()

    def start_for_load(self, model: str, *, aggressive: bool) -> bool:
        """Before a load; False where there is nobody to unload."""
        if not clean_up_order(self._seats(), aggressive=aggressive):
            return False
        self.start(aggressive=aggressive, reason=f"before loading {model}")
        if self.running:
            self.running.not_before = 0.0  # the request waits, so it waits for no trimming
        return True

    def start_for_health(self) -> None:
        """The health was asked for at critical: not again within 30 s."""
        now = self._clock()
        if now - self._health_at > _HEALTH_AGAIN_S:
            self._health_at = now
            self.start(aggressive=True, reason="health check at critical memory use")

    def gone(self, outcome: Reclaimed) -> None:
        """One model's memory is back, or was given up on."""
        if self.running:
            self.running.gone(outcome)

    def stays(self, name: str) -> None:
        """A model that was asked to leave had become busy, or held nothing."""
        if self.running:
            self.running.waiting.discard(name)

    def advance(self, sample: Sample) -> bool:
        """The next move of the running one; True when none runs any more."""
        running = self.running
        if running is None:
            return True
        if running.waiting:
            return False
        if not running.aggressive:
            if sample.time_s < running.not_before:
                return False
            # The look right before the first victim may call it off: trimming may have been enough.
            still_high = running.begun or running.replies or self._outlook.is_high
            victims = clean_up_order(self._seats(), aggressive=False) if still_high else []
            if victims:
                running.begun = True
                running.waiting.add(victims[0].name)
                self._departures.ask(victims[0], running.reason, if_idle=True)
                return False
        self._end(running, sample)
        return True

    def close(self, error: PlimsollError) -> None:
        """Nobody will finish the running one."""
        if self.running:
            for reply in self.running.replies:
                reply.send(Failed(error))
            self.running = None

    def _ask_all(self, running: "CleanUp") -> None:
        # One that leaves may have been given hours to finish: from now on it has the grace that all have.
        seats = [*clean_up_order(self._seats(), aggressive=True), *(one for one in self._seats() if one.leaving)]
        for seat in seats:
            running.waiting.add(seat.name)
            self._departures.ask(seat, running.reason, grace_s=self.grace_s)

    def _end(self, running: "CleanUp", sample: Sample) -> None:
        self.running = None
        self._ended_at = self._clock()
        gc.collect()  # what the models' requests left in the front
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


class CleanUp:
    """Whom one clean-up waits for and what has come back so far.

    ``not_before`` is the sample time from which on it may evict: caches that are trimmed first may be enough. Once
    ``begun`` it goes on until only the last used model is left.
    """

    def __init__(self, *, aggressive: bool, reason: str, sample: Sample, not_before: float) -> None:
        self.aggressive = aggressive
        self.reason = reason
        self.not_before = not_before
        self.begun = False
        self.replies: list[Reply] = []
        self.waiting: set[str] = set()
        self._before = sample.used_percent
        self._outcomes: list[Reclaimed] = []

    def gone(self, outcome: Reclaimed) -> None:
        """One model's memory is back, or was given up on."""
        if outcome.name in self.waiting:
            self.waiting.discard(outcome.name)
            self._outcomes.append(outcome)

    def report(self, sample: Sample) -> CleanupReport:
        return CleanupReport(
            aggressive=self.aggressive,
            reason=self.reason,
            unloaded=[one.name for one in self._outcomes],
            expected_bytes=sum(one.expected_bytes for one in self._outcomes),
            freed_bytes=sum(one.freed_bytes for one in self._outcomes),
            percent_before=round(self._before, 1),
            percent_after=round(sample.used_percent, 1),
        )
