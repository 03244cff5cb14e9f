"""What the Supervisor knows of memory: the newest sample and its level, the forecast, and whether both are too old."""

import math
from collections.abc import Callable, Sequence

from plimsoll.actors.settings import Settings
from plimsoll.actors.watchdog_supervision import SILENT_S
from plimsoll.journal import events
from plimsoll.journal.journal import Journal
from plimsoll.memory.ledger import Seat, admission_open
from plimsoll.memory.levels import WINDOW_S, raw_level
from plimsoll.memory.sample import Level, Sample

_BLIND_AFTER = 3
# Nothing is decided by an older sample.
_STALE_S = 2.0
# If memory will be critical in fewer seconds, no load is granted: it waits so long for the forecast to pass, then it is
# refused. A forecast unloads nothing.
FORECAST_S = 10.0


class MemoryView:
    """Owned by the Supervisor, written by ``Admission``. ``sampled_at`` and all times are seconds on ``clock``."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        clock: Callable[[], float],
        seats: Callable[[], Sequence[Seat]],
    ) -> None:
        """``seats`` lists every living model as it is now."""
        self.settings = settings
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
        # If the source of memory.limit can't be read, the limit can't be enforced: treat the sample as missing.
        self._missed = self._missed + 1 if "limit" in sample.failed else 0
        self.sample, self.sampled_at = sample, self._clock()
        self._note_forecast(sample, seconds_to_critical)

    def note_level(self, level: Level, sample: Sample) -> None:
        """The level has changed."""
        self.level, self.sample = level, sample

    def note_silence(self, seconds: float) -> None:
        """The Watchdog has sent nothing for so many seconds."""
        self._silent_s = seconds

    def note_load(self) -> None:
        """A load begins now: the rise of memory use that follows comes from it."""
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
        """Whether the newest sample is at warning or above; hysteresis plays no part."""
        return self.sample is not None and self.sample.used_percent >= self.settings.thresholds.warning

    @property
    def is_critical(self) -> bool:
        """Whether the newest sample is at critical or above; hysteresis plays no part."""
        return self.sample is not None and raw_level(self.sample, self.settings.thresholds) >= Level.CRITICAL

    @property
    def blind(self) -> bool:
        """Whether memory has not been readable for too long."""
        return self._missed >= _BLIND_AFTER or self._silent_s >= SILENT_S

    @property
    def stale(self) -> bool:
        """Whether the newest sample is too old to decide by."""
        return self._silent_s > _STALE_S

    @property
    def forecast_s(self) -> float | None:
        """Seconds until memory is critical if fewer than ``FORECAST_S``, else None."""
        seconds = self.seconds_to_critical
        return seconds if seconds is not None and seconds < FORECAST_S else None

    @property
    def seconds_to_critical(self) -> float | None:
        """Seconds until memory is critical at the present growth; None without growth, or if a load causes it."""
        if self._loading or self._clock() - self._load_seen_at < WINDOW_S:
            return None  # a granted load makes memory rise, and its bytes are counted already
        return self._seconds_to_critical

    @property
    def _loading(self) -> bool:
        return any(not seat.loaded and seat.reserved_bytes for seat in self._seats())

    @property
    def open(self) -> bool:
        """Whether loads may be granted at all."""
        return admission_open(critical=self.is_critical, forecast=self.forecast_s is not None, blind=self.blind)


class Gauge:
    """The level of the newest sample, written by the Watchdog and read on any thread.

    A model checks it before it obeys an order to stop, which may have waited in the mailbox while memory eased. One
    gauge serves the whole system; its value is replaced as a whole, so it needs no lock.
    """

    def __init__(self) -> None:
        self._newest: tuple[float, Level] | None = None
        self.critical_since = math.inf
        """When the first of the newest samples in a row that are at critical or above was taken."""

    def note(self, sample: Sample, level: Level) -> None:
        """``level`` is the level of ``sample`` alone, without hysteresis."""
        self._newest = (sample.time_s, level)
        self.critical_since = min(self.critical_since, sample.time_s) if level >= Level.CRITICAL else math.inf

    def still(self, level: Level, told_at: float = 0.0) -> bool:
        """Whether no sample newer than ``told_at`` is below ``level``."""
        newer = self._newer_than(told_at)
        return newer is None or newer >= level

    def eased(self, level: Level, told_at: float) -> bool:
        """Whether no sample newer than ``told_at`` is at ``level`` or above."""
        newer = self._newer_than(told_at)
        return newer is None or newer < level

    def _newer_than(self, told_at: float) -> Level | None:
        if self._newest is None:
            return None
        at, level = self._newest
        return level if at > told_at else None
