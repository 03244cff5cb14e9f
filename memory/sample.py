"""One moment of memory, as plain data."""

import enum
from collections.abc import Callable, Sequence

import msgspec


class Level(enum.IntEnum):
    """How full memory is, in four steps."""

    NORMAL = 0
    WARNING = 1
    CRITICAL = 2
    EMERGENCY = 3


DEVICE_PREFIX = "accelerator:"
"""How sources begin that are GPUs with memory of their own. On macOS ``accelerator`` is memory of the machine."""


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

    @property
    def on_device(self) -> bool:
        """Whether it is the memory of a GPU that has its own."""
        return self.source.startswith(DEVICE_PREFIX)


class Tracked(msgspec.Struct, frozen=True):
    """A worker to measure; ``mlx_bytes`` and ``working_set_bytes`` as the worker reports them, 0 if it does not."""

    pid: int
    mlx_bytes: int = 0
    working_set_bytes: int = 0


class Sample(msgspec.Struct, frozen=True):
    """All readings at one moment of the monotonic clock; the fullest one is the binding source.

    ``pressure`` is the level that the system's own pressure signals ask for at least, named by
    ``pressure_source``. ``footprints`` maps the pids of the front and of tracked workers to bytes, and
    ``device_bytes`` to what of these lies in the memory of GPUs. ``failed`` names the readers that failed this time.
    """

    time_s: float
    readings: tuple[Reading, ...]
    pressure: Level = Level.NORMAL
    pressure_source: str = ""
    footprints: dict[int, int] = {}
    failed: tuple[str, ...] = ()
    device_bytes: dict[int, int] = {}

    @property
    def binding(self) -> Reading:
        return max(self.readings, key=lambda reading: reading.percent)

    @property
    def of_models(self) -> tuple[Reading, ...]:
        """The sources in which the weights and KV caches of models count.

        GPUs with memory of their own, where there are any: then the host holds little more than the processes.
        """
        if not any(one.on_device for one in self.readings):
            return self.readings
        return tuple(one for one in self.readings if one.on_device or one.source == "limit")

    @property
    def binding_of_models(self) -> Reading:
        """The fullest of the sources in which models count."""
        return max(self.of_models, key=lambda reading: reading.percent)

    @property
    def used_percent(self) -> float:
        return self.binding.percent

    def source_of(self, level: Level, begins_percent: float) -> str:
        """The cause of ``level``, which use alone reaches at ``begins_percent``: the binding source or the signal."""
        raised = level > Level.NORMAL and self.pressure >= level and self.used_percent < begins_percent
        return self.pressure_source if raised else self.binding.source


Sampler = Callable[[Sequence[Tracked]], Sample]
"""Reads every source that applies. Raises ``OSError`` when none can be read."""
