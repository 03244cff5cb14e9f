"""What the operating system says about memory: the only module here that does I/O."""

import time
from collections.abc import Callable

import msgspec
import psutil


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


class Sample(msgspec.Struct, frozen=True):
    """All readings at one moment of the monotonic clock; the fullest one is the binding source."""

    time_s: float
    readings: tuple[Reading, ...]

    @property
    def binding(self) -> Reading:
        return max(self.readings, key=lambda reading: reading.percent)

    @property
    def used_percent(self) -> float:
        return self.binding.percent


Sampler = Callable[[], Sample]


def host() -> Reading:
    """The machine: total minus what can be had without swapping, over total."""
    memory = psutil.virtual_memory()
    return Reading("host", memory.total, memory.total - memory.available)


def sample() -> Sample:
    """Every source that applies on this machine."""
    return Sample(time.monotonic(), (host(),))
