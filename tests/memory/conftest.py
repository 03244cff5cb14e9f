"""A made-up machine: /proc and /sys/fs/cgroup as trees under tmp_path, a clock moved by hand, a fake libSystem."""

import os
from pathlib import Path
from typing import Any

import pytest

from plimsoll.memory.sources import SystemSampler
from plimsoll.memory.sources.darwin import VmPages

GIB = 1024**3
MIB = 1024**2


class FakeDarwin:
    """``DarwinApi`` of a Mac with 16 GiB, half of them file cache; an exception as a value is raised."""

    def __init__(self, footprints: dict[int, int | Exception] | None = None, level: int | Exception = 1) -> None:
        self.footprints = footprints if footprints is not None else {os.getpid(): 100 * MIB}
        self.level = level
        self.memory: int | Exception = 16 * GIB
        self.pages: VmPages | Exception = mac_pages(free=1, active=7, inactive=5, wired=2, internal=4)
        self.swap: int | Exception = 0

    def memory_bytes(self) -> int:
        return _value(self.memory)

    def vm_pages(self) -> VmPages:
        return _value(self.pages)

    def swap_used_bytes(self) -> int:
        return _value(self.swap)

    def pressure_level(self) -> int:
        return _value(self.level)

    def phys_footprint(self, pid: int) -> int:
        return _value(self.footprints.get(pid, ProcessLookupError()))


def mac_pages(
    *,
    free: float,
    active: float,
    inactive: float,
    wired: float,
    internal: float,
    compressor: float = 0,
    purgeable: float = 0,
    page_bytes: int = 16384,
) -> VmPages:
    """Pages out of GiB; what is active or inactive and not internal is file cache, as in the kernel's own count."""
    kinds = (free, active, inactive, wired, compressor, internal, active + inactive - internal, purgeable)
    return VmPages(page_bytes, *(int(gib * GIB) // page_bytes for gib in kinds))


def _value(value: Any) -> Any:
    if isinstance(value, Exception):
        raise value
    return value


class Machine:
    """Writes the files that the readers read; every method may be called again to change them."""

    def __init__(self, root: Path) -> None:
        self.proc, self.cgroup = root / "proc", root / "cgroup"
        self.cgroup.mkdir(parents=True)
        self.time_s = 0.0
        self.meminfo(24 * GIB, 20 * GIB)
        self.process(os.getpid(), 100 * MIB)

    def sampler(self, **options: Any) -> SystemSampler:
        plain = {"proc": self.proc, "cgroup": self.cgroup, "platform": "linux", "clock": lambda: self.time_s}
        return SystemSampler(**plain | options)

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def spoil(self, path: Path) -> None:
        """A folder in a file's place can't be read, not even by root."""
        path.unlink(missing_ok=True)
        path.mkdir(parents=True)

    def meminfo(self, total: int, available: int) -> None:
        figures = f"MemTotal: {total // 1024:9} kB\nMemFree:  {available // 2048} kB\n"
        self.write(self.proc / "meminfo", f"{figures}MemAvailable: {available // 1024} kB\nBuffers: 4 kB\n")

    def process(self, pid: int, anonymous: int, shmem: int = 0) -> None:
        rss = f"VmRSS:\t {9 * GIB // 1024} kB\nRssAnon:\t {anonymous // 1024} kB\nRssFile:\t 777 kB\n"
        self.write(
            self.proc / str(pid) / "status", f"Name:\tx\nState:\tR (running)\n{rss}RssShmem:\t {shmem // 1024} kB\n"
        )

    def psi(self, avg10: str) -> None:
        line = f"avg10={avg10} avg60=0.00 avg300=0.00 total=0"
        self.write(self.proc / "pressure" / "memory", f"some {line}\nfull {line}\n")

    def vmstat(self, pswpout: int, oom_kill: int = 0) -> None:
        self.write(self.proc / "vmstat", f"nr_free_pages 1\npswpin 99999999\npswpout {pswpout}\noom_kill {oom_kill}\n")

    def belongs_to(self, *lines: str) -> None:
        self.write(self.proc / "self" / "cgroup", "".join(f"{line}\n" for line in lines))

    def mounts(self, *lines: str) -> None:
        self.write(self.proc / "self" / "mountinfo", "".join(f"{line}\n" for line in lines))

    def v2(
        self, folder: str, limit: int | str | None, current: int, high: int | str | None = "max", **stat: int
    ) -> Path:
        """One v2 group; ``limit`` None leaves out memory.max, as in the root group, and ``high`` likewise."""
        place = self.cgroup / folder
        if high is not None and limit is not None:
            self.write(place / "memory.high", f"{high}\n")
        names = ("inactive_file", "active_file", "slab_reclaimable", "file_dirty", "file_writeback")
        if limit is not None:
            self.write(place / "memory.max", f"{limit}\n")
        self.write(place / "memory.current", f"{current}\n")
        self.write(place / "memory.stat", "anon 1\n" + "".join(f"{name} {stat.get(name, 0)}\n" for name in names))
        return place

    def v1(self, folder: str, limit: int, usage: int, hierarchical: int = 2**63 - 4096, **stat: int) -> Path:
        """One v1 group; ``stat`` are the total_ figures, the plain ones are 0 as in a group whose children do all.

        Without an account of swap, as where the kernel was booted without one.
        """
        place = self.cgroup / folder
        names = ("inactive_file", "active_file", "dirty", "writeback")
        lines = [f"{name} 0\ntotal_{name} {stat.get(name, 0)}\n" for name in names]
        self.write(place / "memory.limit_in_bytes", f"{limit}\n")
        self.write(place / "memory.usage_in_bytes", f"{usage}\n")
        self.write(place / "memory.stat", f"hierarchical_memory_limit {hierarchical}\n" + "".join(lines))
        return place


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def pages_of() -> Any:
    return mac_pages


@pytest.fixture
def fake_darwin() -> type[FakeDarwin]:
    return FakeDarwin
