"""A process that fills memory and lets go of it again, as another program on the machine would.

``python ops/bench/hog.py JSON`` with the fields of ``Hog``. It prints ``ready`` and does one round for each line on
its standard input: it prints ``filled SECONDS BYTES`` and ``free SECONDS 0`` as it goes, on the monotonic clock. Linux
only.
"""

import json
import mmap
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MIB = 1024**2
_BLOCK = 4 * MIB
_PAGE = 4096
# What it can't get by then it does not get: others make room faster than it fills.
_FILL_WITHIN_S = 20.0


@dataclass(frozen=True)
class Hog:
    """In each round: fill, stay for ``stay_s``, let go. With ``refills`` it takes, meanwhile, what others let go of.

    It fills ``to_bytes``, or, where ``percent`` is not 0, until the group in ``folder`` (cgroup v1 or v2) has held that
    much of ``limit_bytes`` at one moment. ``mib_per_s`` 0 is as fast as the kernel gives pages.
    """

    to_bytes: int = 0
    percent: float = 0.0
    mib_per_s: float = 0.0
    stay_s: float = 0.0
    refills: bool = False
    folder: str = ""
    version: int = 1
    limit_bytes: int = 0


def wanted_bytes(hog: Hog, held_bytes: int, used_bytes: int) -> int:
    """How much to hold at the end of a round, by the ``used_bytes`` of all and the ``held_bytes`` of the hog now."""
    if not hog.percent:
        return hog.to_bytes
    return held_bytes + max(0, int(hog.limit_bytes * hog.percent / 100) - used_bytes)


def held_after(hog: Hog, seconds: float, wanted: int) -> int:
    """How much of ``wanted`` bytes is held ``seconds`` after the filling began."""
    if not hog.mib_per_s:
        return wanted
    return min(wanted, int(seconds * hog.mib_per_s * MIB))


def _fill(hog: Hog, used_bytes: Callable[[], int], blocks: list[mmap.mmap]) -> None:
    """Anonymous pages, each of them written to."""
    began, held = time.monotonic(), sum(map(len, blocks))
    while held < (wanted := wanted_bytes(hog, held, used_bytes())) and time.monotonic() < began + _FILL_WITHIN_S:
        # What others let go of meanwhile is missing then, so a share is looked at before each block.
        most = held + _BLOCK if hog.percent else wanted
        due = min(most, held_after(hog, time.monotonic() - began, wanted))
        while held < due:
            size = min(_BLOCK, due - held) // _PAGE * _PAGE or _PAGE
            block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            block[::_PAGE] = b"x" * (size // _PAGE)
            blocks.append(block)
            held += size
        if hog.mib_per_s:
            time.sleep(0.005)


def _stay(hog: Hog, used_bytes: Callable[[], int], blocks: list[mmap.mmap]) -> None:
    until = time.monotonic() + hog.stay_s
    while hog.refills and time.monotonic() < until:
        _fill(hog, used_bytes, blocks)
        time.sleep(0.05)
    time.sleep(max(0.0, until - time.monotonic()))


def _say(what: str, held: int) -> None:
    print(f"{what} {time.monotonic():.4f} {held}", flush=True)


def main() -> None:
    """Do as the first argument says."""
    from control_group import counters, used_bytes  # noqa: PLC0415 - the rest can be imported anywhere

    hog = Hog(**json.loads(sys.argv[1]))
    folder = Path(hog.folder)
    current = folder / ("memory.usage_in_bytes" if hog.version == 1 else "memory.current")

    def used() -> int:
        return used_bytes(int(current.read_text()), counters((folder / "memory.stat").read_text()), hog.version)

    print("ready", flush=True)
    for _ in sys.stdin:
        blocks: list[mmap.mmap] = []
        measure = used if hog.percent else int
        _fill(hog, measure, blocks)
        _say("filled", sum(len(block) for block in blocks))
        _stay(hog, measure, blocks)
        for block in blocks:
            block.close()
        _say("free", 0)


if __name__ == "__main__":
    main()
