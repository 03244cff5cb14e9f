"""How fast one model generates, out of a counter that is read now and then."""

from collections import deque

_WINDOW_S = 2.0


class Throughput:
    """Tokens per second over about the last two seconds; owned by the Supervisor."""

    def __init__(self) -> None:
        self._counts: deque[tuple[float, int]] = deque()

    def note(self, tokens: int, now: float) -> None:
        """``tokens`` were generated in all until ``now``, seconds on the monotonic clock."""
        if self._counts and now - self._counts[-1][0] > _WINDOW_S:
            self._counts.clear()  # it was idle in between
        self._counts.append((now, tokens))
        while len(self._counts) > 2 and self._counts[1][0] <= now - _WINDOW_S:
            self._counts.popleft()

    @property
    def per_second(self) -> float:
        if len(self._counts) < 2:
            return 0.0
        (first_s, first), (last_s, last) = self._counts[0], self._counts[-1]
        return (last - first) / max(last_s - first_s, 1e-3)
