"""Whether a process that says nothing still does something."""

import os
from pathlib import Path

import msgspec
import psutil

from plimsoll.memory.sources.files import number

# /proc/PID/stat after the name in brackets: major faults, user and system time in clock ticks.
_MAJOR_FAULTS, _USER, _SYSTEM = 9, 11, 12
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Activity(msgspec.Struct, frozen=True):
    """What a process has done since it began: seconds of CPU, and a count that grows with all that it reads.

    ``reads`` adds bytes read and pages that had to come from the disk or from swap; it is 0 where nobody counts.
    """

    cpu_s: float
    reads: int = 0


def activity(pid: int, proc: Path = Path("/proc")) -> Activity | None:
    """The counters of ``pid`` as of now, None where they can't be read."""
    try:
        return _of_proc(proc / str(pid)) if (proc / "self").exists() else _of_psutil(pid)
    except (OSError, ValueError, IndexError, psutil.Error):
        return None


def _of_proc(folder: Path) -> Activity:
    # The name of a process may hold spaces and brackets.
    fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
    cpu_s = (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS_PER_S
    try:
        read_bytes = number((folder / "io").read_bytes(), "rchar") or 0
    except OSError:  # a kernel without this accounting
        read_bytes = 0
    return Activity(cpu_s, read_bytes + int(fields[_MAJOR_FAULTS]))


def _of_psutil(pid: int) -> Activity:
    times = psutil.Process(pid).cpu_times()
    return Activity(times.user + times.system)
