"""A control group with a memory limit and no swap, and named groups in it: what a container or a unit runs under.

Works with cgroup v1 and v2, as root or where the groups were delegated. A process that is to be in a group is started
``inside`` it. File formats: the kernel's Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from plimsoll.memory.sources import cgroup

_ROOT = Path("/sys/fs/cgroup")
# How long the kernel may take to let go of processes that have ended.
_EMPTY_WITHIN_S = 5.0


class NoGroup(Exception):
    """No control group can be made here; the text is one sentence with the reason."""


def counters(text: str) -> dict[str, int]:
    """``memory.events`` (v2), ``memory.oom_control`` (v1) and ``memory.stat``: a name and a number on each line."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def used_bytes(current: int, stat: dict[str, int], version: int) -> int:
    """What can't be dropped of ``current`` bytes; the file cache of the group and of those in it can."""
    prefix = "total_" if version == 1 else ""
    return max(0, current - stat[f"{prefix}inactive_file"] - stat[f"{prefix}active_file"])


class ControlGroup:
    """``limit_bytes`` for all that runs in the groups called ``names``. Made by ``with``, and removed after it."""

    def __init__(self, limit_bytes: int, names: Sequence[str]) -> None:
        self.limit_bytes = limit_bytes
        self._names = names
        tree = _tree()
        self.version = tree.version
        self._own = tree.folders[0]
        # In v2 no group may have both processes and groups with a limit, but the root may.
        parent = tree.folders[0] if tree.version == 1 else tree.folders[-1]
        self.folder = parent / f"plimsoll-pressure-{os.getpid()}"

    def __enter__(self) -> Self:
        try:
            self._make()
        except OSError as error:
            self._remove(self.folder)
            raise NoGroup(
                f"no control group with a memory limit can be made in {self.folder.parent} ({error}): run this as "
                "root, on a machine or in a container whose /sys/fs/cgroup is writable"
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        until = time.monotonic() + _EMPTY_WITHIN_S
        while self.folder.exists() and time.monotonic() < until:
            self._remove(self.folder)
            time.sleep(0.05)

    @contextlib.contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """What is started meanwhile is in the group ``name``, for this process is."""
        own, pid = self._own / "cgroup.procs", str(os.getpid())
        (self.folder / name / "cgroup.procs").write_text(pid)
        try:
            yield
        finally:
            own.write_text(pid)

    def used_bytes(self) -> int:
        """What all groups in it hold and can't drop."""
        current = self._read("memory.usage_in_bytes" if self.version == 1 else "memory.current")
        return used_bytes(int(current), counters(self._read("memory.stat")), self.version)

    def oom_kills(self, name: str) -> int:
        """How many processes of the group ``name`` the kernel has killed for want of memory."""
        file = "memory.oom_control" if self.version == 1 else "memory.events"
        return counters((self.folder / name / file).read_text())["oom_kill"]

    def _read(self, file: str) -> str:
        return (self.folder / file).read_text()

    def _make(self) -> None:
        self.folder.mkdir()
        if self.version == 1:
            (self.folder / "memory.use_hierarchy").write_text("1")
            (self.folder / "memory.swappiness").write_text("0")
            limit = self.folder / "memory.limit_in_bytes"
            with_swap = self.folder / "memory.memsw.limit_in_bytes"
        else:
            _enable_memory(self.folder.parent)
            _enable_memory(self.folder)
            limit, with_swap = self.folder / "memory.max", self.folder / "memory.swap.max"
        limit.write_text(str(self.limit_bytes))
        # A kernel that does not account swap has no such file; without swap there is nothing to forbid.
        with contextlib.suppress(OSError):
            with_swap.write_text(str(self.limit_bytes) if self.version == 1 else "0")
        for name in self._names:
            (self.folder / name).mkdir()

    def _remove(self, folder: Path) -> None:
        for one in (*(folder / name for name in self._names), folder):
            with contextlib.suppress(OSError):
                one.rmdir()


def _tree() -> cgroup.Tree:
    try:
        membership = Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="replace")
        mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise NoGroup(f"this system has no control groups that can be seen ({error})") from None
    tree = cgroup.find(membership, mountinfo, _ROOT)
    if tree is None:
        raise NoGroup("this system has no control groups that account memory")
    return tree


def _enable_memory(folder: Path) -> None:
    control = folder / "cgroup.subtree_control"
    if "memory" not in control.read_text().split():
        control.write_text("+memory")
