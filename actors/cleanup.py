"""One clean-up from its start to its report."""

from plimsoll.actors.messages import CleanupReport, Reply
from plimsoll.memory.reclaim import Reclaimed
from plimsoll.memory.sample import Sample


class CleanUp:
    """Whom it waits for and what has come back so far; owned by ``Admission``.

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

    def stays(self, name: str) -> None:
        """A model that was asked to leave had become busy, or held nothing."""
        self.waiting.discard(name)

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
