"""Single processes: their footprints, whether they do anything, the largest others, and whom the kernel has killed."""

import os
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import msgspec
import psutil

from plimsoll.memory.death_evidence import KillCounts, oom_killed
from plimsoll.memory.sample import Sample, Sampler, Tracked
from plimsoll.memory.sources import cgroup
from plimsoll.memory.sources.darwin import DarwinApi
from plimsoll.memory.sources.files import number


def largest_others(own_pids: Collection[int], count: int = 3) -> list[tuple[str, int, int]]:
    """(name, pid, resident bytes) of the largest processes besides ``own_pids``, largest first.

    It looks at every process, which takes milliseconds: for changes of level, not for samples.
    """
    others = []
    for process in psutil.process_iter():
        if process.pid in own_pids:
            continue
        try:
            others.append((process.name(), process.pid, int(process.memory_info().rss)))
        except psutil.Error:  # ended meanwhile, or another user's
            continue
    return sorted(others, key=lambda other: other[2], reverse=True)[:count]


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


# The kernel takes up to seconds from the kill of a large process to its end, and samples go on meanwhile.
_SECONDS = 3.0


def oom_kills(proc: Path = Path("/proc"), root: Path = Path("/sys/fs/cgroup")) -> KillCounts:
    """The counts as of now; neither can be read on macOS."""
    host = _count(proc / "vmstat")
    try:
        membership = (proc / "self" / "cgroup").read_text(encoding="utf-8", errors="replace")
        mountinfo = (proc / "self" / "mountinfo").read_text(encoding="utf-8", errors="replace")
        tree = cgroup.find(membership, mountinfo, root)
    except (OSError, ValueError):
        tree = None
    if tree is None:
        return KillCounts(None, host)
    return KillCounts(_count(tree.folders[0] / ("memory.events" if tree.version == 2 else "memory.oom_control")), host)


def _count(path: Path) -> int | None:
    try:
        return number(path.read_bytes(), "oom_kill")
    except OSError:
        return None


class RecentMemory:
    """The samples of the last three seconds, with the OOM kills up to each. From any thread.

    The kills are read with every sample, so that an old one, or one elsewhere, is not taken for the end of a worker.
    """

    def __init__(self, count: Callable[[], KillCounts] = oom_kills) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._seen: tuple[tuple[Sample, KillCounts], ...] = ()

    def note_those_of(self, sampler: Sampler) -> Sampler:
        """``sampler``, whose samples are remembered here."""

        def sample(tracked: Sequence[Tracked]) -> Sample:
            taken = sampler(tracked)
            self._note(taken, self._count())
            return taken

        return sample

    def _note(self, sample: Sample, counts: KillCounts) -> None:
        with self._lock:
            recent = (one for one in self._seen if one[0].time_s > sample.time_s - _SECONDS)
            self._seen = (*recent, (sample, counts))

    @property
    def samples(self) -> tuple[Sample, ...]:
        return tuple(sample for sample, _ in self._seen)

    def killed_one(self) -> bool:
        """Whether the kernel has just killed a process of ours. To be asked once for each that died of SIGKILL.

        One kill explains one death: it is not told of the next one.
        """
        now = self._count()
        with self._lock:
            if not self._seen or not oom_killed(self._seen[0][1], now, self.samples):
                return False
            # As if that kill had been counted before.
            self._seen = tuple((sample, _after_one_more(counts)) for sample, counts in self._seen)
            return True


def _after_one_more(counts: KillCounts) -> KillCounts:
    group, host = (None if one is None else one + 1 for one in (counts.group, counts.host))
    return msgspec.structs.replace(counts, group=group, host=host)
