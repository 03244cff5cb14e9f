"""The control groups around this process: the limit that a container or a unit runs under."""

from pathlib import Path

from plimsoll.memory.sample import Reading
from plimsoll.memory.sources import cgroup_tree
from plimsoll.memory.sources.files import OpenFile, number, required

# v1 writes "no limit" as 2^63 less one page, and a page may have 64 KiB.
_NO_LIMIT_BYTES = 2**62


class CgroupReader:
    """Reads the fullest of the limited groups that hold this process."""

    def __init__(self, proc: Path, root: Path) -> None:
        self._membership = OpenFile(proc / "self" / "cgroup")
        self._mountinfo = proc / "self" / "mountinfo"
        self._root = root
        self._text: bytes | None = None
        self._groups: tuple[_Group, ...] = ()

    def __call__(self) -> Reading | None:
        """None when no limit applies. Raises ``OSError`` or ``ValueError`` when there may be one that can't be read."""
        try:
            text = self._membership.read()
        except FileNotFoundError:
            return None  # a kernel without control groups
        if text != self._text:
            self._groups = self._find(text)
            self._text = text
        readings = [reading for group in self._groups if (reading := group.read())]
        # A parent's limit counts our siblings' memory too, so each limit is held against its own group's use.
        return max(readings, key=lambda reading: (reading.percent, -reading.total), default=None)

    def _find(self, membership: bytes) -> tuple["_Group", ...]:
        try:
            mountinfo = self._mountinfo.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            mountinfo = ""
        tree = cgroup_tree.find(membership.decode(errors="replace"), mountinfo, self._root)
        if tree is None:
            return ()
        kind = _V1 if tree.version == 1 else _Group
        own, *ancestors = tree.folders
        return (kind(own, own=True), *(kind(folder, own=False) for folder in ancestors))


class _Group:
    """One group of cgroup v2. Key names: the kernel's Documentation/admin-guide/cgroup-v2.rst."""

    limit_name, used_name = "memory.max", "memory.current"

    def __init__(self, folder: Path, *, own: bool) -> None:
        self._own = own
        self._limit, self._used = OpenFile(folder / self.limit_name), OpenFile(folder / self.used_name)
        self._stat = OpenFile(folder / "memory.stat")

    def read(self) -> Reading | None:
        try:
            limit = _limit(self._limit.read())
        except FileNotFoundError:
            return None  # the root group, or one without the memory controller
        limit = self.effective(limit)
        if limit is None:
            return None
        current, stat = int(self._used.read()), self._stat.read()
        # The counters are not of one instant, so their difference may leave the possible range.
        return Reading("cgroup", limit, max(0, min(current - self.reclaimable(stat), current)))

    def effective(self, limit: int | None) -> int | None:
        return limit

    def reclaimable(self, stat: bytes) -> int:
        """Bytes the kernel can take back at once: clean file cache, hot or cold, and slabs."""
        cached = required(stat, "inactive_file") + required(stat, "active_file")
        unwritten = required(stat, "file_dirty") + required(stat, "file_writeback")
        return cached + (number(stat, "slab_reclaimable") or 0) - unwritten


class _V1(_Group):
    """One group of cgroup v1. Key names: the kernel's Documentation/admin-guide/cgroup-v1/memory.rst."""

    limit_name, used_name = "memory.limit_in_bytes", "memory.usage_in_bytes"

    def effective(self, limit: int | None) -> int | None:
        """The limit that also heeds ancestors which can't be seen from in here."""
        if not self._own:
            return limit
        inherited = number(self._stat.read(), "hierarchical_memory_limit")
        limits = [one for one in (limit, inherited) if one is not None and one < _NO_LIMIT_BYTES]
        return min(limits, default=None)

    def reclaimable(self, stat: bytes) -> int:
        """As in v2, with child groups counted; v1 does not tell how much of the slabs could go."""
        cached = _total(stat, "inactive_file") + _total(stat, "active_file")
        return cached - _total(stat, "dirty") - _total(stat, "writeback")


def _total(stat: bytes, name: str) -> int:
    whole = number(stat, f"total_{name}")
    return required(stat, name) if whole is None else whole


def _limit(text: bytes) -> int | None:
    if text.strip() == b"max":
        return None
    limit = int(text)
    if limit <= 0:
        raise ValueError(f"a memory limit of {limit} bytes")
    return limit if limit < _NO_LIMIT_BYTES else None
