"""What is known of memory: the latest sample and its level, the forecast, and whether what is known is too old."""

from collections.abc import Callable, Sequence

from plimsoll.actors.keeper import SILENT_S
from plimsoll.journal import events
from plimsoll.journal.journal import Journal
from plimsoll.memory.forecast import WINDOW_S
from plimsoll.memory.levels import Thresholds
from plimsoll.memory.plan import Seat, admission_open
from plimsoll.memory.sample import Level, Sample

_BLIND_AFTER = 3
# An older sample decides nothing any more.
_STALE_S = 2.0
# Under this many seconds to critical no load is granted, and none waits longer for that to pass; nothing is
# unloaded for a forecast.
FORECAST_S = 10.0


class Outlook:
    """Owned by the Supervisor, written by ``Admission``. ``sampled_at`` and all times are seconds on ``clock``."""

    def __init__(
        self,
        thresholds: Thresholds,
        journal: Journal,
        clock: Callable[[], float],
        seats: Callable[[], Sequence[Seat]],
    ) -> None:
        """``seats`` lists every living model as it is now."""
        self.thresholds = thresholds
        self._clock = clock
        self._journal = journal
        self._seats = seats
        self.level = Level.NORMAL
        self.sample: Sample | None = None
        self.sampled_at = clock()
        self._missed = 0
        self._silent_s = 0.0
        self._seconds_to_critical: float | None = None
        self._load_seen_at = -1e9

    # ---- what happens

    def note(self, sample: Sample | None, level: Level, seconds_to_critical: float | None) -> None:
        """A new sample, or None for one that failed."""
        self._silent_s = 0.0
        self.level = level
        if sample is None:
            self._missed += 1
            return
        # Without its own figures a limit that was asked for is not kept: as bad for admission as no sample at all.
        self._missed = self._missed + 1 if "limit" in sample.failed else 0
        self.sample, self.sampled_at = sample, self._clock()
        self._note_forecast(sample, seconds_to_critical)

    def note_level(self, level: Level, sample: Sample) -> None:
        """The level has changed."""
        self.level, self.sample = level, sample

    def note_silence(self, seconds: float) -> None:
        """For how long the Watchdog has said nothing."""
        self._silent_s = seconds

    def note_load(self) -> None:
        """A load begins now: the rise that follows is ours."""
        self._load_seen_at = self._clock()

    def _note_forecast(self, sample: Sample, seconds: float | None) -> None:
        before = self.forecast_s
        self._seconds_to_critical = seconds
        if self._loading:
            self.note_load()
        if before is None and self.forecast_s is not None:
            self._journal.record(events.Forecast(self.forecast_s, sample.used_percent))

    # ---- what follows

    @property
    def is_high(self) -> bool:
        """Whether the latest sample is at warning or above, whatever the level is still."""
        return self.sample is not None and self.sample.used_percent >= self.thresholds.warning

    @property
    def is_critical(self) -> bool:
        """Whether the latest sample is at critical or above."""
        return self.sample is not None and self.sample.used_percent >= self.thresholds.critical

    @property
    def blind(self) -> bool:
        """Whether memory has not been readable for too long."""
        return self._missed >= _BLIND_AFTER or self._silent_s >= SILENT_S

    @property
    def stale(self) -> bool:
        """Whether the Watchdog has to speak before anything is decided."""
        return self._silent_s > _STALE_S

    @property
    def forecast_s(self) -> float | None:
        """Seconds to critical when they are few, else None."""
        seconds = self.seconds_to_critical
        return seconds if seconds is not None and seconds < FORECAST_S else None

    @property
    def seconds_to_critical(self) -> float | None:
        """Until memory is critically full if it fills on like this; None when it does not, or for a load of ours."""
        if self._loading or self._clock() - self._load_seen_at < WINDOW_S:
            return None  # the rise is, or holds, a load that was granted: its bytes are counted already
        return self._seconds_to_critical

    @property
    def _loading(self) -> bool:
        return any(not seat.loaded and seat.reserved_bytes for seat in self._seats())

    @property
    def open(self) -> bool:
        """Whether loads may be granted at all."""
        return admission_open(self.level, forecast=self.forecast_s is not None, blind=self.blind)
