"""What the operating system says about memory: the only part of ``memory`` that does I/O."""

from collections.abc import Sequence

from plimsoll.memory.sample import Sample, Tracked
from plimsoll.memory.sources.processes import Activity, RecentMemory, activity, largest_others, oom_kills
from plimsoll.memory.sources.system import SystemSampler

__all__ = ["Activity", "RecentMemory", "SystemSampler", "activity", "largest_others", "oom_kills", "sample"]


def sample(tracked: Sequence[Tracked] = ()) -> Sample:
    """One sample of this machine; whoever takes many keeps a ``SystemSampler``."""
    return SystemSampler()(tracked)
