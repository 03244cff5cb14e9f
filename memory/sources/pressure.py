"""The system's own signs of memory pressure. They come late, so they only ever raise a level."""

import errno
import re
import resource
from collections.abc import Callable
from pathlib import Path

from plimsoll.memory.sample import Level
from plimsoll.memory.sources.darwin import DarwinApi
from plimsoll.memory.sources.files import OpenFile, required

_STALLED_PERCENT = 10.0
_SWAP_BYTES_PER_S = 4_096_000.0
# Swapping comes in bursts: over a tenth of a second 400 kB would already look like a storm.
_WINDOW_S = 1.0
_SOME_AVG10 = re.compile(rb"^some avg10=(\d+(?:\.\d+)?) ", re.MULTILINE)


class Stalls:
    """Linux PSI: the share of the last 10 s in which some task waited for memory, as a level."""

    def __init__(self, proc: Path) -> None:
        self._file = OpenFile(proc / "pressure" / "memory")

    def __call__(self) -> Level:
        try:
            text = self._file.read()
        except OSError as error:
            # Not built in, or switched off (psi=0): then there is nothing to read, and nothing broken.
            if error.errno in {errno.ENOENT, errno.EOPNOTSUPP}:
                return Level.NORMAL
            raise
        found = _SOME_AVG10.search(text)
        if not found:
            raise ValueError("no avg10 of some")
        return Level.WARNING if float(found[1]) > _STALLED_PERCENT else Level.NORMAL


class Vmstat:
    """Linux: bytes written to swap since the machine began; None where nothing is counted."""

    def __init__(self, proc: Path, page_bytes: int = resource.getpagesize()) -> None:
        self._file = OpenFile(proc / "vmstat")
        self._page_bytes = page_bytes

    def __call__(self) -> int | None:
        try:
            return required(self._file.read(), "pswpout") * self._page_bytes
        except FileNotFoundError:
            return None


class SwapOut:
    """How fast swap grows, as a level; the rate of the last full second stands until the next."""

    def __init__(self, swapped_bytes: Callable[[], int | None]) -> None:
        """``swapped_bytes``: a count that grows with what is written to swap."""
        self._swapped_bytes = swapped_bytes
        self._since: tuple[float, int] | None = None
        self._level = Level.NORMAL

    def __call__(self, time_s: float) -> Level:
        try:
            swapped = self._swapped_bytes()
        except Exception:
            self._since, self._level = None, Level.NORMAL
            raise
        if swapped is None or self._since is None:
            self._since = None if swapped is None else (time_s, swapped)
            self._level = Level.NORMAL
            return self._level
        elapsed_s, grown = time_s - self._since[0], swapped - self._since[1]
        if elapsed_s >= _WINDOW_S:
            self._since = time_s, swapped
            self._level = Level.WARNING if grown > _SWAP_BYTES_PER_S * elapsed_s else Level.NORMAL
        return self._level


def of_macos(darwin: DarwinApi) -> Level:
    """The kernel's pressure level. Raises ``OSError``; ``ValueError`` for a level that it has no name for."""
    level = darwin.pressure_level()
    try:
        return {1: Level.NORMAL, 2: Level.WARNING, 4: Level.CRITICAL}[level]
    except KeyError:
        raise ValueError(f"an unknown pressure level: {level}") from None
