"""The machine as a whole."""

import re
from collections.abc import Callable
from pathlib import Path

import psutil

from plimsoll.memory.sample import Reading
from plimsoll.memory.sources.darwin import DarwinApi, VmPages
from plimsoll.memory.sources.files import OpenFile, number, required

# Every page is of one of the kinds that are added up, but for what the firmware keeps to itself.
_LEAST_KNOWN, _MOST_KNOWN = 0.6, 1.1

# Of arcstats, lines of name, type and value: type 4 is an unsigned number.
_EVICTABLE = {b"mru_evictable_data", b"mru_evictable_metadata", b"mfu_evictable_data", b"mfu_evictable_metadata"}
_KSTAT = re.compile(rb"^(%s) +4 +(\d+)$" % b"|".join((b"size", b"c_min", *sorted(_EVICTABLE))), re.MULTILINE)

HostReader = Callable[[dict[str, str]], Reading]
"""Reads the machine; what failed while figures could still be had goes into the given dict, reasons by name."""


def reader(platform: str, proc: Path, darwin: DarwinApi) -> HostReader:
    """How to read this machine: total minus what can be had without swapping, over total; bytes."""
    if platform == "linux":
        return _Meminfo(proc)
    if platform == "darwin":
        return _Mac(darwin)
    return lambda _failures: _by_psutil()


class _Meminfo:
    """MemAvailable and what ZFS would give back: shared memory, tmpfs and reserved huge pages are in neither."""

    def __init__(self, proc: Path) -> None:
        self._file = OpenFile(proc / "meminfo")
        self._arc = OpenFile(proc / "spl" / "kstat" / "zfs" / "arcstats")

    def __call__(self, failures: dict[str, str]) -> Reading:
        text = self._file.read()
        total = required(text, "MemTotal") * 1024
        available = number(text, "MemAvailable")
        if available is None:  # kernels before 3.14, some sandboxes
            droppable = sum(number(text, name) or 0 for name in ("Buffers", "Cached", "SReclaimable"))
            # Cached counts shared memory and tmpfs too, which have nowhere to go but to swap.
            available = required(text, "MemFree") + max(0, droppable - (number(text, "Shmem") or 0))
        return _reading(total, available * 1024 + self._droppable_arc(failures))

    def _droppable_arc(self, failures: dict[str, str]) -> int:
        """Bytes of ZFS's own cache, the ARC, which is file cache that the kernel does not count as available."""
        try:
            return droppable_arc_bytes(self._arc.read())
        except FileNotFoundError:
            return 0  # no ZFS here
        except (OSError, ValueError) as error:
            failures["zfs_arc"] = f"{type(error).__name__}: {error}; all of ZFS's cache counts as used"
            return 0


def droppable_arc_bytes(arcstats: bytes) -> int:
    """What the ARC gives back when asked: what can be evicted of it, down to its smallest size.

    ``arcstats`` is the text of /proc/spl/kstat/zfs/arcstats (OpenZFS, module/zfs/arc.c). Raises ``ValueError``.
    """
    figures = {name: int(value) for name, value in _KSTAT.findall(arcstats)}
    if b"size" not in figures or b"c_min" not in figures:
        raise ValueError("no size and c_min of the ARC")
    spare = max(0, figures[b"size"] - figures[b"c_min"])
    evictable = [size for name, size in figures.items() if name in _EVICTABLE]
    # OpenZFS before 0.7 does not tell what open files and running I/O hold.
    return min(spare, sum(evictable)) if evictable else spare


class _Mac:
    """What Activity Monitor shows as memory used: app memory, wired and compressed."""

    def __init__(self, darwin: DarwinApi) -> None:
        self._darwin = darwin

    def __call__(self, failures: dict[str, str]) -> Reading:
        try:
            total, pages = self._darwin.memory_bytes(), self._darwin.vm_pages()
            return _reading(total, total - in_use_bytes(pages, total))
        except Exception as error:  # noqa: BLE001 - whatever the kernel's figures lack, psutil has others
            stead = "psutil's figures are taken, which count file cache that is in use as used"
            failures["host_statistics"] = f"{type(error).__name__}: {error}; {stead}"
            return _by_psutil()


def in_use_bytes(pages: VmPages, total: int) -> int:
    """What macOS can't drop: internal pages but for purgeable ones, wired pages, and pages of compressed ones.

    File cache is left out, however often it is read. Raises ``ValueError`` for pages that don't add up to a machine
    of ``total`` bytes.
    """
    known = pages.free + pages.active + pages.inactive + pages.wired + pages.compressor
    if not _LEAST_KNOWN * total <= known * pages.page_bytes <= _MOST_KNOWN * total:
        raise ValueError(f"{known} pages of {pages.page_bytes} bytes on a machine of {total} bytes")
    kept = max(0, pages.internal - pages.purgeable) + pages.wired + pages.compressor
    return kept * pages.page_bytes


def _by_psutil() -> Reading:
    memory = psutil.virtual_memory()
    return _reading(memory.total, memory.available)


def _reading(total: int, available: int) -> Reading:
    if total <= 0:
        raise ValueError(f"a machine with {total} bytes of memory")
    # Containers with a made-up /proc may show more available than there is.
    return Reading("host", total, total - min(max(available, 0), total))
