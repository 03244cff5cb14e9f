"""How often the kernel has killed for want of memory."""

from pathlib import Path

from plimsoll.memory.sources import cgroup_tree
from plimsoll.memory.sources.files import number


def oom_kills(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The kernel's count plus our own control group's: after an out-of-memory kill of a worker it has risen.

    By how much says nothing, since one kill may count in both. What can't be read counts as 0, as on macOS.
    """
    counters = [_count(proc / "vmstat")]
    try:
        membership = (proc / "self" / "cgroup").read_text(encoding="utf-8", errors="replace")
        mountinfo = (proc / "self" / "mountinfo").read_text(encoding="utf-8", errors="replace")
        tree = cgroup_tree.find(membership, mountinfo, cgroup)
    except (OSError, ValueError):
        tree = None
    if tree:
        # A kill counts in the victim's own group, whichever group's limit brought it about.
        own = tree.folders[0]
        counters.append(_count(own / ("memory.events" if tree.version == 2 else "memory.oom_control")))
    return sum(counters)


def _count(path: Path) -> int:
    try:
        return number(path.read_bytes(), "oom_kill") or 0
    except OSError:
        return 0
