"""The control groups around this process: the limit that a container or a unit runs under."""

import abc
import re
from pathlib import Path

import msgspec

from plimsoll.memory.sample import Reading
from plimsoll.memory.sources.files import OpenFile, number, required

_USUAL_ROOT = Path("/sys/fs/cgroup")


class Tree(msgspec.Struct, frozen=True):
    """The hierarchy that accounts memory: its version (1 or 2) and our group's folder, then its visible ancestors."""

    version: int
    folders: tuple[Path, ...]


class _Mount(msgspec.Struct, frozen=True):
    """``root`` is what part of the hierarchy shows at ``point``; it may be ``/..`` in a cgroup namespace."""

    root: str
    point: Path


def find(membership: str, mountinfo: str, root: Path) -> Tree | None:
    """The tree for the texts of /proc/self/cgroup and /proc/self/mountinfo; None when none can be seen.

    ``root`` stands for /sys/fs/cgroup. Formats: cgroups(7), proc_pid_mountinfo(5).
    """
    group = _group(membership)
    if group is None:
        return None
    version, path = group
    mount = _mount(version, path, mountinfo, root)
    parts = _below(path, mount.root)
    candidates = (mount.point.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))
    folders = tuple(folder for folder in candidates if folder.is_dir())
    return Tree(version, folders) if folders else None


def _group(membership: str) -> tuple[int, str] | None:
    """(version, path). In a hybrid tree the memory controller is on one side only, and v1 names it."""
    unified = None
    for line in membership.splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return 1, path
        if hierarchy == "0":
            unified = 2, path
    return unified


def _mount(version: int, path: str, mountinfo: str, root: Path) -> _Mount:
    mounts = [mount for line in mountinfo.splitlines() if (mount := _parse(line, version, root))]
    # The same hierarchy may be mounted twice; only a mount above our group shows it.
    mounts.sort(key=lambda mount: not _is_under(path, mount.root))
    if mounts:
        return mounts[0]
    if version == 1:
        return _Mount("/", root / "memory")
    unified = root / "unified"
    return _Mount("/", unified if unified.is_dir() else root)


def _parse(line: str, version: int, root: Path) -> _Mount | None:
    mount, _, filesystem = line.partition(" - ")
    fields, kind = mount.split(), filesystem.split()
    if len(fields) < 5 or len(kind) < 3:
        return None
    if version == 1 and not (kind[0] == "cgroup" and "memory" in kind[2].split(",")):
        return None
    if version == 2 and kind[0] != "cgroup2":
        return None
    shown, point = (re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field) for field in fields[3:5])
    place = Path(point)
    if place.is_relative_to(_USUAL_ROOT):
        place = root / place.relative_to(_USUAL_ROOT)
    return _Mount(shown, place)


def _is_under(path: str, root: str) -> bool:
    return root in ("/", path) or path.startswith(f"{root}/")


def _below(path: str, root: str) -> list[str]:
    """The folders from the mount down to our group; none when its names can't be known from in here."""
    if not _is_under(path, root):
        return []
    parts = [part for part in path.removeprefix(root).split("/") if part]
    return [] if ".." in parts else parts


# v1 writes "no limit" as 2^63 less one page, and a page may have 64 KiB.
_NO_LIMIT_BYTES = 2**62


class CgroupReader:
    """Reads each of the limited groups that hold this process.

    The process's own group is called ``cgroup``, its ancestors ``cgroup:/PATH`` from the visible root: the fullest of
    them need not be the nearest to its end.
    """

    def __init__(self, proc: Path, root: Path) -> None:
        self._membership = OpenFile(proc / "self" / "cgroup")
        self._mountinfo = proc / "self" / "mountinfo"
        self._root = root
        self._text: bytes | None = None
        self._groups: tuple[_Group, ...] = ()

    def __call__(self) -> tuple[Reading, ...]:
        """None at all when no limit applies. Raises ``OSError`` or ``ValueError`` when one can't be read."""
        try:
            text = self._membership.read()
        except FileNotFoundError:
            return ()  # a kernel without control groups
        if text != self._text:
            self._groups = self._find(text)
            self._text = text
        # A parent's limit counts our siblings' memory too, so each limit is held against its own group's use.
        return tuple(reading for group in self._groups if (reading := group.read()))

    def _find(self, membership: bytes) -> tuple["_Group", ...]:
        try:
            mountinfo = self._mountinfo.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            mountinfo = ""
        tree = find(membership.decode(errors="replace"), mountinfo, self._root)
        if tree is None:
            return ()
        kind = _V1 if tree.version == 1 else _V2
        own, *ancestors = tree.folders
        top = tree.folders[-1]
        named = [(own, "cgroup"), *((folder, f"cgroup:/{_path(folder, top)}") for folder in ancestors)]
        return tuple(kind(folder, source) for folder, source in named)


def _path(folder: Path, top: Path) -> str:
    return "" if folder == top else folder.relative_to(top).as_posix()


class _Group(abc.ABC):
    """One group; ``source`` is what its readings are called."""

    limit_name: str
    used_name: str

    def __init__(self, folder: Path, source: str) -> None:
        self.folder, self.source = folder, source
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
        used = max(0, min(current - self.reclaimable(stat), current))
        return Reading(self.source, limit, used + self.lost_to_swap(limit, current))

    @abc.abstractmethod
    def effective(self, limit: int | None) -> int | None:
        """The limit that holds, given the one in ``limit_name``."""

    @abc.abstractmethod
    def reclaimable(self, stat: bytes) -> int:
        """Bytes the kernel can take back at once, out of the text of memory.stat."""

    def lost_to_swap(self, _limit: int, _current: int) -> int:
        """Bytes by which what lies in swap shortens the limit."""
        return 0


class _V2(_Group):
    """A group of cgroup v2. Key names: the kernel's Documentation/admin-guide/cgroup-v2.rst."""

    limit_name, used_name = "memory.max", "memory.current"

    def __init__(self, folder: Path, source: str) -> None:
        super().__init__(folder, source)
        self._high = OpenFile(folder / "memory.high")

    def effective(self, limit: int | None) -> int | None:
        """The lower of the limit and of the line above which the kernel slows the group down until it hardly moves."""
        return min((one for one in (limit, _optional(self._high)) if one is not None), default=None)

    def reclaimable(self, stat: bytes) -> int:
        """Clean file cache, hot or cold, and slabs."""
        cached = required(stat, "inactive_file") + required(stat, "active_file")
        unwritten = (number(stat, "file_dirty") or 0) + (number(stat, "file_writeback") or 0)
        return cached + (number(stat, "slab_reclaimable") or 0) - unwritten


class _V1(_Group):
    """A group of cgroup v1. Key names: the kernel's Documentation/admin-guide/cgroup-v1/memory.rst."""

    limit_name, used_name = "memory.limit_in_bytes", "memory.usage_in_bytes"

    def __init__(self, folder: Path, source: str) -> None:
        super().__init__(folder, source)
        self._both_limit = OpenFile(folder / "memory.memsw.limit_in_bytes")
        self._both_used = OpenFile(folder / "memory.memsw.usage_in_bytes")

    def effective(self, limit: int | None) -> int | None:
        """The limit that also heeds ancestors which can't be seen from in here."""
        inherited = number(self._stat.read(), "hierarchical_memory_limit") if self.source == "cgroup" else None
        limits = [one for one in (limit, inherited) if one is not None and one < _NO_LIMIT_BYTES]
        return min(limits, default=None)

    def reclaimable(self, stat: bytes) -> int:
        """As in v2, with child groups counted; v1 does not tell how much of the slabs could go."""
        cached = _total(stat, "inactive_file") + _total(stat, "active_file")
        # Kernels before 4.2 name neither.
        return cached - (_total(stat, "dirty", 0) + _total(stat, "writeback", 0))

    def lost_to_swap(self, limit: int, current: int) -> int:
        """A limit for memory and swap together is reached the sooner the more lies in swap."""
        both = _optional(self._both_limit)
        if both is None:
            return 0
        swapped = int(self._both_used.read()) - current
        return max(0, swapped - max(0, both - limit))


def _total(stat: bytes, name: str, default: int | None = None) -> int:
    """The figure of the group and its children, where they are counted apart."""
    whole = number(stat, f"total_{name}")
    if whole is not None:
        return whole
    return required(stat, name) if default is None else number(stat, name) or default


def _optional(file: OpenFile) -> int | None:
    """A limit that not every kernel has."""
    try:
        return _limit(file.read())
    except FileNotFoundError:
        return None


def _limit(text: bytes) -> int | None:
    if text.strip() == b"max":
        return None
    limit = int(text)
    if limit <= 0:
        raise ValueError(f"a memory limit of {limit} bytes")
    return limit if limit < _NO_LIMIT_BYTES else None
