"""What the front process asks of the operating system: open files, memory given back, an end with its parent."""

import asyncio
import ctypes
import logging
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

_log = logging.getLogger("plimsoll.http")
_PARENT_CHECK_S = 0.5
# Files for all else: workers' pipes and sockets, the log, the black box, models' files, the reserve of connections.
_OTHERS = 256


def allow_open_files(connections: int) -> None:
    """Raise the soft limit of open files as far as needed and allowed; log a warning if that is not enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHERS
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    possible = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    except (OSError, ValueError):  # macOS refuses what is above kern.maxfilesperproc
        possible = soft
    if possible < wanted:
        text = "limits.connections is %d, but only %d files may be open; raise that with: ulimit -n %d"
        _log.warning(text, connections, possible, wanted)


# mallopt(3): blocks of this size or more are mapped one by one. Left to itself glibc raises the threshold to the
# largest block that was freed: after one body of 15 MiB the front process would keep the memory of all later ones.
_M_MMAP_THRESHOLD = -3
_THRESHOLD_BYTES = 1024 * 1024


def unmap_large_blocks() -> None:
    """Have blocks of a mebibyte or more returned to the system as soon as they are freed."""
    if (mallopt := _glibc("mallopt")) is not None:
        mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES)


def trim_heap() -> None:
    """Return the allocator's unused memory to the system; takes milliseconds, and does not hold Python's lock."""
    if (malloc_trim := _glibc("malloc_trim")) is not None:
        malloc_trim(0)


def _glibc(name: str) -> Any:
    """The function ``name`` of the C library; None where there is none (macOS, musl)."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


async def end_with_parent(parent: int, stop: Callable[[], None]) -> None:
    """Call ``stop`` once the parent's pid is not ``parent`` any more: an orphan gets another parent.

    Checked twice a second, because macOS sends no signal for it.
    """
    while os.getppid() == parent:  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(_PARENT_CHECK_S)
    _log.warning("the process that started the server (pid %d) has ended: the server stops", parent)
    stop()
