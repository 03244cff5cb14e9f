"""The machine as a whole."""

from collections.abc import Callable
from pathlib import Path

import psutil

from plimsoll.memory.sample import Reading
from plimsoll.memory.sources.files import OpenFile, number, required


def reader(platform: str, proc: Path) -> Callable[[], Reading]:
    """How to read this machine: total minus what can be had without swapping, over total; bytes."""
    return _Meminfo(proc) if platform == "linux" else _by_psutil


class _Meminfo:
    """What psutil reads on Linux, at a fifth of its cost and under any root."""

    def __init__(self, proc: Path) -> None:
        self._file = OpenFile(proc / "meminfo")

    def __call__(self) -> Reading:
        text = self._file.read()
        total = required(text, "MemTotal") * 1024
        available = number(text, "MemAvailable")
        if available is None:  # kernels before 3.14, some sandboxes
            available = required(text, "MemFree") + sum(number(text, name) or 0 for name in ("Buffers", "Cached"))
        return _reading(total, available * 1024)


def _by_psutil() -> Reading:
    memory = psutil.virtual_memory()
    return _reading(memory.total, memory.available)


def _reading(total: int, available: int) -> Reading:
    if total <= 0:
        raise ValueError(f"a machine with {total} bytes of memory")
    # Containers with a made-up /proc may show more available than there is.
    return Reading("host", total, total - min(max(available, 0), total))
