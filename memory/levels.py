"""What samples say: the level, with debounce and hysteresis; the forecast; which readers fail. All of it is pure."""

import statistics
import sys
from collections import deque
from collections.abc import Sequence

import msgspec

from plimsoll.memory.sample import Level, Sample


class Thresholds(msgspec.Struct, frozen=True):
    """Percent of memory used; times in seconds."""

    warning: float = 85.0
    critical: float = 95.0
    emergency: float = 98.0
    hysteresis: float = 5.0
    clear_after_s: float = 10.0

    def of(self, level: Level) -> float:
        """The percent at which ``level`` begins."""
        return (0.0, self.warning, self.critical, self.emergency)[level]


class LevelState(msgspec.Struct, frozen=True):
    """The state between two samples.

    ``raw_before`` is what the last sample alone would say; ``below_since`` is when use fell below the line at
    which the present level may be left, with no pressure signal left to hold it. ``confirmed`` is the level of the
    last samples without hysteresis: ``level`` is for reports and events; unloading is decided by ``confirmed``.
    """

    level: Level = Level.NORMAL
    raw_before: Level = Level.NORMAL
    below_since: float | None = None
    confirmed: Level = Level.NORMAL


# An emergency needs one sample; the other levels need two, so that one odd reading unloads nothing.
_CONFIRMED_AT_ONCE = Level.EMERGENCY


def advance(state: LevelState, sample: Sample, thresholds: Thresholds) -> LevelState:
    """The state after ``sample``: up on two samples in a row (emergency on one), down below the hysteresis line.

    The system's pressure signals raise and hold levels up to critical like use does, but have no hysteresis line.
    """
    pressure = min(sample.pressure, Level.CRITICAL)
    raw = raw_level(sample, thresholds)
    confirmed = raw if raw >= _CONFIRMED_AT_ONCE else min(raw, state.raw_before)
    if confirmed > state.level:
        return LevelState(confirmed, raw, confirmed=confirmed)
    held = sample.used_percent >= thresholds.of(state.level) - thresholds.hysteresis or pressure >= state.level
    if state.level == Level.NORMAL or held:
        return LevelState(state.level, raw, confirmed=confirmed)
    since = sample.time_s if state.below_since is None else state.below_since
    if sample.time_s - since < thresholds.clear_after_s:
        return LevelState(state.level, raw, since, confirmed)
    level = max(_left_to(state.level, sample.used_percent, thresholds), pressure)
    return LevelState(level, raw, confirmed=confirmed)


def raw_level(sample: Sample, thresholds: Thresholds) -> Level:
    """The level of this sample alone: by its use, and up to critical by the system's pressure signals."""
    reached = max((level for level in Level if sample.used_percent >= thresholds.of(level)), default=Level.NORMAL)
    return max(reached, min(sample.pressure, Level.CRITICAL))


def _left_to(level: Level, percent: float, thresholds: Thresholds) -> Level:
    """The level below ``level`` whose own hysteresis line still holds ``percent``."""
    lower = (Level(n) for n in range(level - 1, 0, -1))
    return next((one for one in lower if percent >= thresholds.of(one) - thresholds.hysteresis), Level.NORMAL)


# How fast a machine can fill its memory; the time to the next sample follows from it.
_FILL_BYTES_PER_S = 8 * 1024**3 if sys.platform == "darwin" else 6 * 1024**3
# The macOS kernel gives no fresh figures faster than twice a second.
_SHORTEST_S = 0.5 if sys.platform == "darwin" else 0.1
_LONGEST_S = 1.0


def next_interval_s(sample: Sample, thresholds: Thresholds) -> float:
    """Seconds until the next sample: the time in which the first source could be filled up to critical."""
    # In bytes, because a small limit at 50% has less room than a large machine at 60%.
    room = min(reading.total * thresholds.critical / 100 - reading.used for reading in sample.readings)
    return min(max(room / _FILL_BYTES_PER_S, _SHORTEST_S), _LONGEST_S)


WINDOW_S = 3.0
_FEWEST = 5


def seconds_to_critical(samples: Sequence[Sample], critical_percent: float) -> float | None:
    """Seconds until the newest sample's binding source reaches ``critical_percent``; 0.0 when it has.

    ``(critical - used) / slope``, with the slope of a least-squares line through that source's readings in the
    last 3 s. None when use is flat or falling, or for fewer than 5 readings. ``samples`` are in order of time.
    """
    if not samples:
        return None
    newest = samples[-1]
    source = newest.binding.source
    points = [
        (sample.time_s - newest.time_s, reading.percent)
        for sample in samples
        if newest.time_s - sample.time_s <= WINDOW_S
        for reading in sample.readings
        if reading.source == source
    ]
    if len(points) < _FEWEST:
        return None
    try:
        slope = statistics.linear_regression(*zip(*points, strict=True)).slope
    except statistics.StatisticsError:  # all at one moment
        return None
    if slope <= 0:
        return None
    return max(0.0, critical_percent - newest.used_percent) / slope


class History:
    """The samples of the last 3 s, which a forecast is made of."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque()

    def add(self, sample: Sample) -> None:
        self._samples.append(sample)
        while sample.time_s - self._samples[0].time_s > WINDOW_S:
            self._samples.popleft()

    def seconds_to_critical(self, critical_percent: float) -> float | None:
        """As the function of this name, over the last 3 s."""
        return seconds_to_critical(self._samples, critical_percent)


class ReadersState(msgspec.Struct, frozen=True):
    """``told``: readers that were reported as failing; ``before``: readers that failed at the last sample."""

    told: frozenset[str] = frozenset()
    before: frozenset[str] = frozenset()


def advance_readers(state: ReadersState, failed: tuple[str, ...]) -> tuple[ReadersState, tuple[str, ...]]:
    """The state after a sample in which ``failed`` gave nothing, and those of them that are to be told.

    A single failure is not reported: the same readers have to fail, or work again, in two samples in a row.
    """
    now = frozenset(failed)
    if now != state.before:
        return ReadersState(state.told, now), ()
    return ReadersState(now, now), tuple(sorted(now - state.told))
