"""How much memory a process holds that would come back if it ended."""

import os
from collections.abc import Callable
from pathlib import Path

from plimsoll.memory.sources.darwin import DarwinApi
from plimsoll.memory.sources.files import number

# The text has some 1500 bytes; smaps_rollup would tell shared pages apart but costs 11 ms per GiB.
_STATUS_BYTES = 8192


def reader(platform: str, proc: Path, darwin: DarwinApi) -> Callable[[int], int | None]:
    """How to read a pid's footprint in bytes; it returns None for a process that has ended."""

    def linux(pid: int) -> int | None:
        return of_status(proc, pid)

    def macos(pid: int) -> int | None:
        try:
            return darwin.phys_footprint(pid)
        except ProcessLookupError:
            return None

    return linux if platform == "linux" else macos


def of_status(proc: Path, pid: int) -> int | None:
    """RssAnon + RssShmem of /proc/PID/status: without the file pages, which the kernel can drop by itself.

    None when the process has ended. Raises ``OSError`` or ``ValueError``.
    """
    try:
        fd = os.open(proc / str(pid) / "status", os.O_RDONLY)
        try:
            text = os.read(fd, _STATUS_BYTES)
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        return None
    anonymous = number(text, "RssAnon")
    if anonymous is not None:
        return (anonymous + (number(text, "RssShmem") or 0)) * 1024
    resident = number(text, "VmRSS")  # all that sandboxes such as gVisor give
    if resident is not None:
        return resident * 1024
    if b"State:" not in text:
        raise ValueError(f"no memory figures for process {pid}")
    return None  # a zombie has given its memory back
