"""Which control groups hold this process, and where they can be seen."""

import re
from pathlib import Path

import msgspec

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
