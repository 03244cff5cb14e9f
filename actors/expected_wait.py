"""How long a client that is sent away is asked to wait, by what was measured of its model: a pure decision."""

_LEAST_S = 1.0
# Official clients do not wait longer than a minute: they take a longer time for a mistake.
_MOST_S = 60.0
# How much of the mean the newest answer is.
_NEWEST_SHARE = 0.2


class Pace:
    """What one model needs per answer and for a load, over all its lives; None until it was measured.

    ``answer_s`` is the mean time from the end of one answer to that of the next while it has any to give, so answers
    of one batch count as often as they are many. The ModelActor writes it, the Supervisor reads it.
    """

    def __init__(self) -> None:
        self.answer_s: float | None = None
        self.load_s: float | None = None
        self._since: float | None = None

    def busy(self, now: float) -> None:
        """A request begins at ``now``, seconds on the monotonic clock."""
        if self._since is None:
            self._since = now

    def answered(self, now: float) -> None:
        """An answer has ended."""
        if self._since is None:
            return
        took_s, self._since = now - self._since, now
        mean_s = took_s if self.answer_s is None else self.answer_s
        self.answer_s = mean_s + _NEWEST_SHARE * (took_s - mean_s)

    def idle(self) -> None:
        """No request runs any more."""
        self._since = None


def expected_wait_s(pace: Pace, ahead: int, *, loaded: bool) -> float:
    """Seconds until ``ahead`` requests are answered, with the model's load before them unless it is ``loaded``."""
    wait_s = ahead * (pace.answer_s or 0.0) + (0.0 if loaded else pace.load_s or 0.0)
    return min(_MOST_S, max(_LEAST_S, wait_s))
