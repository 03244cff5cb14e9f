"""The sampler: every reader that applies to this machine, each allowed to fail on its own."""

import functools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from plimsoll.memory.sample import Level, Reading, Sample, Tracked
from plimsoll.memory.sources import host, nvidia, pressure, processes
from plimsoll.memory.sources.cgroup import CgroupReader
from plimsoll.memory.sources.darwin import DarwinApi, LibSystem

log = logging.getLogger("plimsoll.memory")

_T = TypeVar("_T")

# The kernel stalls tasks and swaps also where it only drops file cache, or for a control group that is not ours. While
# so much can be had that is no reason to unload anything. macOS leaves file cache out of its own level.
_SIGNALS_OF_ANY_RECLAIM = frozenset({"psi", "swap"})
_THEY_COUNT_FROM_PERCENT = 70.0
_MEASURES = frozenset({"host", "host_statistics", "cgroup"})


class SystemSampler:
    """A ``Sampler`` of the system it runs on; calls from several threads wait for each other.

    The readers are ``host``, ``cgroup``, ``footprint``, ``limit``, ``accelerator``, ``psi``, ``swap`` and
    ``vm_pressure``. One that does not apply here (no control group limit, no PSI in this kernel, no worker that
    reports a working set) is simply absent. One that should have answered and did not is named in ``Sample.failed``
    and its reason is in ``errors``: its figures are missing from that sample, so the sample may say less than is
    used. Of an NVIDIA GPU that can't be read the workers' own figures count.
    ``host_statistics`` is named where the host's figures come from psutil instead, which on macOS says more
    than is used. A tracked process that has ended is no failure.
    """

    def __init__(
        self,
        *,
        limit_bytes: int | None = None,
        proc: Path = Path("/proc"),
        cgroup: Path = Path("/sys/fs/cgroup"),
        platform: str = sys.platform,
        clock: Callable[[], float] = time.monotonic,
        darwin: DarwinApi | None = None,
        devices: nvidia.DeviceReader | None = None,
    ) -> None:
        self.set_limit(limit_bytes)
        self.errors: dict[str, str] = {}
        self._clock = clock
        self._lock = threading.Lock()
        darwin = darwin or LibSystem()
        self._host = host.reader(platform, proc, darwin)
        self._footprint = processes.reader(platform, proc, darwin)
        self._cgroup: CgroupReader | None = None
        self._accelerated = platform == "darwin"
        self._devices = devices or nvidia.reader(platform)
        self._signals: dict[str, Callable[[float], Level]] = {}
        if platform == "darwin":
            self._signals["vm_pressure"] = lambda _time_s: pressure.of_macos(darwin)
            self._signals["swap"] = pressure.SwapOut(darwin.swap_used_bytes)
        elif platform == "linux":
            self._cgroup = CgroupReader(proc, cgroup)
            stalls = pressure.Stalls(proc)
            self._signals["psi"] = lambda _time_s: stalls()
            self._signals["swap"] = pressure.SwapOut(pressure.Vmstat(proc))

    def set_limit(self, limit_bytes: int | None) -> None:
        """From the next sample on; None is none. Raises ``ValueError`` for one that is not above 0."""
        if limit_bytes is not None and limit_bytes <= 0:
            raise ValueError(f"memory.limit must be above 0, not {limit_bytes}")
        self._limit_bytes = limit_bytes

    def __call__(self, tracked: Sequence[Tracked] = ()) -> Sample:
        """One sample. Raises ``OSError`` when no source can be read at all."""
        with self._lock:
            return self._sample(tracked)

    def _sample(self, tracked: Sequence[Tracked]) -> Sample:
        time_s, errors = self._clock(), dict[str, str]()
        footprints = self._footprints(tracked, errors)
        devices = self._read_devices(footprints, time_s, errors)
        device_bytes = self._device_bytes(tracked, footprints, devices)
        footprints = {pid: size + device_bytes.get(pid, 0) for pid, size in footprints.items()}
        groups = _attempt("cgroup", self._cgroup, errors) if self._cgroup else None
        readings = (
            _attempt("host", functools.partial(self._host, errors), errors),
            *(groups or ()),
            _attempt("limit", functools.partial(self._limit, footprints, errors), errors),
            _attempt("accelerator", functools.partial(self._accelerator, tracked, footprints, errors), errors),
            *devices.readings,
        )
        given = tuple(reading for reading in readings if reading)
        level, source = self._pressure(time_s, given, errors)
        self._note(errors)
        if not given:
            reasons = "; ".join(f"{name}: {error}" for name, error in errors.items())
            raise OSError(f"no source of memory figures can be read ({reasons})")
        return Sample(time_s, given, level, source, footprints, tuple(errors), device_bytes)

    def _pressure(self, time_s: float, given: Sequence[Reading], errors: dict[str, str]) -> tuple[Level, str]:
        """The level that the system's own signals ask for, and the signal that does."""
        asked = {
            name: _attempt(name, functools.partial(signal, time_s), errors) for name, signal in self._signals.items()
        }
        fullest = max((one.percent for one in given if one.source != "limit"), default=100.0)
        # Where use may be higher than what was read, every sign counts.
        if fullest < _THEY_COUNT_FROM_PERCENT and not _MEASURES & errors.keys():
            asked = {name: level for name, level in asked.items() if name not in _SIGNALS_OF_ANY_RECLAIM}
        level, source = Level.NORMAL, ""
        for name, one in asked.items():
            if one is not None and one > level:
                level, source = one, name
        return level, source

    def _footprints(self, tracked: Sequence[Tracked], errors: dict[str, str]) -> dict[int, int]:
        front = os.getpid()
        footprints = {}
        for pid in dict.fromkeys((front, *(one.pid for one in tracked))):
            size = _attempt("footprint", functools.partial(self._footprint, pid), errors)
            if size is not None:
                footprints[pid] = size
        if front not in footprints:
            errors.setdefault("footprint", "no figures for this very process")
        return footprints

    def _read_devices(self, footprints: dict[int, int], time_s: float, errors: dict[str, str]) -> nvidia.DeviceMemory:
        read = functools.partial(self._devices, tuple(footprints), time_s) if self._devices else None
        return (_attempt("accelerator", read, errors) if read else None) or nvidia.DeviceMemory()

    def _device_bytes(
        self, tracked: Sequence[Tracked], footprints: dict[int, int], devices: nvidia.DeviceMemory
    ) -> dict[int, int]:
        """What our processes hold in device memory: by the driver, or by their own word where it does not say."""
        if self._devices is None:
            return {}
        told = {one.pid: one.mlx_bytes for one in tracked if one.mlx_bytes} | devices.processes
        return {pid: told[pid] for pid in footprints if pid in told}

    def _limit(self, footprints: dict[int, int], errors: dict[str, str]) -> Reading | None:
        limit_bytes = self._limit_bytes  # once: another thread may change it
        if limit_bytes is None:
            return None
        if "footprint" in errors:
            raise ValueError("not every footprint is known, so their sum would be too low")
        return Reading("limit", limit_bytes, sum(footprints.values()))

    def _accelerator(
        self, tracked: Sequence[Tracked], footprints: dict[int, int], errors: dict[str, str]
    ) -> Reading | None:
        if not self._accelerated:
            return None
        total = max((one.working_set_bytes for one in tracked), default=0)
        if total <= 0:
            return None
        # Where footprints can't be read, what the worker itself reports still counts; an ended one has given it back.
        alive = [one for one in tracked if one.pid in footprints or "footprint" in errors]
        return Reading("accelerator", total, sum(max(footprints.get(one.pid, 0), one.mlx_bytes) for one in alive))

    def _note(self, errors: dict[str, str]) -> None:
        """Log what changed: a reader that fails ten times a second is one line, not ten."""
        for name in errors.keys() - self.errors.keys():
            log.warning("memory reader %s fails: %s; sampling goes on without it", name, errors[name])
        for name in self.errors.keys() - errors.keys():
            log.info("memory reader %s works again", name)
        self.errors = errors


def _attempt(name: str, read: Callable[[], _T], errors: dict[str, str]) -> _T | None:
    try:
        return read()
    except Exception as error:  # noqa: BLE001 - whatever one reader raises, the others go on
        errors[name] = f"{type(error).__name__}: {error}"
        return None
