"""When a worker that has work and says nothing counts as hung: decided over time, without I/O.

All that a worker sends comes from its step thread, the one that computes, so any frame is a sign of life. A frame from
a thread beside it would prove nothing, so workers have no such heartbeat. While one step computes for minutes (a chunk
of prefill of a large model on a CPU, weights from a slow disk, a machine that swaps) what the system counts for the
process tells it from one that stands still.
"""

from plimsoll.memory.sources import Activity

# What a worker that works without a word gets, as a multiple of the limit.
PATIENCE = 5
_LOOKS = 20
_LONGEST_LOOK_S = 5.0
# A process that waits for ever uses next to nothing; one on an overloaded machine still gets this share of a core.
_WORKS = 0.01


class Rounds:
    """Time as far as somebody was awake to watch it.

    A round that comes late counts as two at the most: whoever goes it was stopped, starved or asleep with the whole
    machine, and then so was what he watches.
    """

    def __init__(self, every_s: float, now: float) -> None:
        self._longest_s = 2 * every_s
        self._last = now

    def passed_s(self, now: float) -> float:
        """Watched seconds since the last round."""
        passed_s, self._last = min(now - self._last, self._longest_s), now
        return passed_s


class Patience:
    """What one worker is given while it has work: ``limit_s`` of standing still, five times that of mere silence."""

    def __init__(self, limit_s: float, now: float) -> None:
        self.every_s = look_every_s(limit_s)
        self._limit_s = limit_s
        self._rounds = Rounds(self.every_s, now)
        self._heard = False
        self._silent_s = self._still_s = 0.0
        self._before: Activity | None = None

    def heard(self) -> None:
        """It said something."""
        self._heard = True

    def look(self, activity: Activity | None, now: float) -> float | None:
        """To be called every ``every_s``: the seconds of silence once it counts as hung, else None."""
        passed_s = self._rounds.passed_s(now)
        before, self._before = self._before, activity
        if self._heard:
            self._heard = False
            self._silent_s = self._still_s = 0.0
            return None
        self._silent_s += passed_s
        self._still_s = 0.0 if _works(before, activity, passed_s) else self._still_s + passed_s
        if self._still_s >= self._limit_s or self._silent_s >= self._limit_s * PATIENCE:
            return self._silent_s
        return None


def look_every_s(limit_s: float) -> float:
    """How often to look, so that a hang is noticed soon after its limit."""
    return min(limit_s / _LOOKS, _LONGEST_LOOK_S)


def _works(before: Activity | None, after: Activity | None, passed_s: float) -> bool:
    if before is None or after is None:
        return False
    return after.reads > before.reads or after.cpu_s - before.cpu_s > _WORKS * passed_s
