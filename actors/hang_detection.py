"""When a worker that has work and says nothing counts as hung: decided over time, without I/O.

All that a worker sends comes from its step thread, the one that computes, so any frame is a sign of life. A frame from
a thread beside it would prove nothing, so workers have no such heartbeat. While one step computes for minutes (a chunk
of prefill of a large model on a CPU, weights from a slow disk, a machine that swaps) what the system counts for the
process tells it from one that stands still.
"""

from collections.abc import Callable
from typing import NamedTuple

from plimsoll.actors.messages import Message, Ref
from plimsoll.actors.timers import Timers
from plimsoll.memory.sources import Activity

# A worker that computes or reads but sends no event gets this multiple of the limit.
SILENCE_FACTOR = 5
_LOOKS = 20
_LONGEST_LOOK_S = 5.0
# A process that waits for ever uses almost no CPU time; on an overloaded machine a working process still gets this
# share of a core.
_WORKS = 0.01


class CheckIntervals:
    """Counts the time between checks that are meant to come every ``every_s`` seconds.

    A late check (laptop sleep, starvation) counts as two intervals at most: the process that is watched was not
    running either.
    """

    def __init__(self, every_s: float, now: float) -> None:
        self._longest_s = 2 * every_s
        self._last = now

    def passed_s(self, now: float) -> float:
        """Seconds since the last check, two intervals at most."""
        passed_s, self._last = min(now - self._last, self._longest_s), now
        return passed_s


class HangDetector:
    """Decides whether a worker with work hangs: ``limit_s`` without activity, or five times that without an event."""

    def __init__(self, limit_s: float, now: float) -> None:
        self.every_s = look_every_s(limit_s)
        self._limit_s = limit_s
        self._intervals = CheckIntervals(self.every_s, now)
        self._heard = False
        self._silent_s = self._still_s = 0.0
        self._before: Activity | None = None

    def heard(self) -> None:
        """The worker sent an event."""
        self._heard = True

    def look(self, activity: Activity | None, now: float) -> float | None:
        """To be called every ``every_s``: the seconds of silence once it counts as hung, else None."""
        passed_s = self._intervals.passed_s(now)
        before, self._before = self._before, activity
        if self._heard:
            self._heard = False
            self._silent_s = self._still_s = 0.0
            return None
        self._silent_s += passed_s
        self._still_s = 0.0 if _works(before, activity, passed_s) else self._still_s + passed_s
        if self._still_s >= self._limit_s or self._silent_s >= self._limit_s * SILENCE_FACTOR:
            return self._silent_s
        return None


def look_every_s(limit_s: float) -> float:
    """Seconds between two checks, so that a hang is noticed soon after its limit."""
    return min(limit_s / _LOOKS, _LONGEST_LOOK_S)


def _works(before: Activity | None, after: Activity | None, passed_s: float) -> bool:
    if before is None or after is None:
        return False
    return after.reads > before.reads or after.cpu_s - before.cpu_s > _WORKS * passed_s


class HangCheck(Message, frozen=True):
    """Timer: check whether the worker has sent an event."""


class Hung(NamedTuple):
    """A worker that has work sent no event for ``silent_s`` seconds."""

    silent_s: float


class HangWatch:
    """Owned by one ModelActor, whose mailbox gets the ``HangCheck``; without a limit no worker is watched."""

    def __init__(
        self, owner: Ref, timers: Timers, activity: Callable[[int], Activity | None], limit_s: float | None
    ) -> None:
        self._owner = owner
        self._timers = timers
        self._activity = activity
        self._limit_s = limit_s
        self._detector: HangDetector | None = None
        self._armed = self._told = False

    def follow(self, *, working: bool) -> None:
        """``working``: a worker owes an answer. To be called whenever that may have changed."""
        if not working:
            self._detector, self._told = None, False
        elif self._detector is None and self._limit_s is not None and not self._told:
            self._detector = HangDetector(self._limit_s, self._timers.now())
            self._arm(self._detector)

    def heard(self) -> None:
        """The worker sent an event."""
        if self._detector:
            self._detector.heard()

    def look(self, pid: int | None) -> Hung | None:
        """The answer to a ``HangCheck``; ``pid`` is None while the process has not started."""
        self._armed = False
        detector = self._detector
        if detector is None:
            return None
        # A process that has not started, because the disk of its program does not answer, shows no activity.
        silent_s = detector.look(self._activity(pid) if pid else None, self._timers.now())
        if silent_s is None:
            self._arm(detector)
            return None
        # The caller kills the worker now; how long that takes is not watched here.
        self._detector, self._told = None, True
        return Hung(silent_s)

    def _arm(self, detector: HangDetector) -> None:
        if not self._armed:
            self._armed = True
            self._timers.tell_later(detector.every_s, self._owner, HangCheck())
