"""One moment of memory, as plain data."""

import enum
from collections.abc import Callable, Sequence

import msgspec


class Level(enum.IntEnum):
    """How full memory is: what the ladder acts on."""

    NORMAL = 0
    WARNING = 1
    CRITICAL = 2
    EMERGENCY = 3


class Reading(msgspec.Struct, frozen=True):
    """One source at one moment; bytes and percent."""

    source: str
    total: int
    used: int

    @property
    def available(self) -> int:
        return max(0, self.total - self.used)

    @property
    def percent(self) -> float:
        return 100.0 * self.used / self.total


class Tracked(msgspec.Struct, frozen=True):
    """A worker to be measured; ``mlx_bytes`` and ``working_set_bytes`` as it reports them, 0 where it does not."""

    pid: int
    mlx_bytes: int = 0
    working_set_bytes: int = 0


class Sample(msgspec.Struct, frozen=True):
    """All readings at one moment of the monotonic clock; the fullest one is the binding source.

    ``pressure`` is the level that the system's own pressure signals ask for at least, named by
    ``pressure_source``. ``footprints`` maps the pids of the front and of tracked workers to bytes. ``failed`` names
    the readers that gave nothing this time.
    """

    time_s: float
    readings: tuple[Reading, ...]
    pressure: Level = Level.NORMAL
    pressure_source: str = ""
    footprints: dict[int, int] = {}
    failed: tuple[str, ...] = ()

    @property
    def binding(self) -> Reading:
        return max(self.readings, key=lambda reading: reading.percent)

    @property
    def used_percent(self) -> float:
        return self.binding.percent


Sampler = Callable[[Sequence[Tracked]], Sample]
"""Reads every source that applies. Raises ``OSError`` when none can be read."""
