"""Samples to levels: a pure function with debounce and hysteresis."""

import sys

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
    """What has to be remembered between samples.

    ``raw_before`` is what the last sample alone would say; ``below_since`` is when use fell below the line at
    which the present level may be left, with no pressure signal left to hold it.
    """

    level: Level = Level.NORMAL
    raw_before: Level = Level.NORMAL
    below_since: float | None = None


# One sample is enough to stop everything; a single odd reading is not enough to unload a model.
_CONFIRMED_AT_ONCE = Level.EMERGENCY


def advance(state: LevelState, sample: Sample, thresholds: Thresholds) -> LevelState:
    """The state after ``sample``: up on two samples in a row (emergency on one), down below the hysteresis line.

    The system's pressure signals raise and hold levels up to critical like use does, but have no hysteresis line.
    """
    pressure = min(sample.pressure, Level.CRITICAL)
    raw = max(_raw(sample.used_percent, thresholds), pressure)
    confirmed = raw if raw >= _CONFIRMED_AT_ONCE else min(raw, state.raw_before)
    if confirmed > state.level:
        return LevelState(confirmed, raw)
    held = sample.used_percent >= thresholds.of(state.level) - thresholds.hysteresis or pressure >= state.level
    if state.level == Level.NORMAL or held:
        return LevelState(state.level, raw)
    since = sample.time_s if state.below_since is None else state.below_since
    if sample.time_s - since < thresholds.clear_after_s:
        return LevelState(state.level, raw, since)
    return LevelState(max(_left_to(state.level, sample.used_percent, thresholds), pressure), raw)


def _raw(percent: float, thresholds: Thresholds) -> Level:
    return max((level for level in Level if percent >= thresholds.of(level)), default=Level.NORMAL)


def _left_to(level: Level, percent: float, thresholds: Thresholds) -> Level:
    """The level below ``level`` whose own hysteresis line still holds ``percent``."""
    lower = (Level(n) for n in range(level - 1, 0, -1))
    return next((one for one in lower if percent >= thresholds.of(one) - thresholds.hysteresis), Level.NORMAL)


# How fast a machine can fill its memory, so how soon the next look has to be.
_FILL_BYTES_PER_S = 8 * 1024**3 if sys.platform == "darwin" else 6 * 1024**3
# The macOS kernel gives no fresh figures faster than twice a second.
_SHORTEST_S = 0.5 if sys.platform == "darwin" else 0.1
_LONGEST_S = 1.0


def next_interval_s(sample: Sample, thresholds: Thresholds) -> float:
    """Seconds until the next sample: the time in which the first source could be filled up to critical."""
    # A small limit at 50% is nearer to its end than a large machine at 60%.
    room = min(reading.total * thresholds.critical / 100 - reading.used for reading in sample.readings)
    return min(max(room / _FILL_BYTES_PER_S, _SHORTEST_S), _LONGEST_S)
