"""Whether a worker died for lack of memory: pure decisions over the last samples and the kernel's counts of OOM kills.

A crash costs one model, so lack of memory needs evidence. A wrong "no" is cheap: the Watchdog acts on every sample
anyway. A wrong "yes" unloads every model of a healthy machine.
"""

import signal
from collections.abc import Sequence

import msgspec

from plimsoll.memory.sample import Level, Sample

# At this use or above, an allocation may have failed between two samples.
NEAR_PERCENT = 90.0
# The same for a worker that held more than it was granted: its growth was not expected.
NEAR_IF_OUTGROWN_PERCENT = 80.0
# An allocation that fails on a CPU ends MLX by one of the first three; a user-space OOM killer (earlyoom,
# systemd-oomd, jetsam on macOS) sends one of the others, and no counter shows it.
_SIGNALS = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGKILL, signal.SIGTERM})


class Death(msgspec.Struct, frozen=True):
    """The death of a worker that this server did not order.

    ``code`` as ``Popen.returncode``. ``oom_killed``: the kernel's OOM killer ended it. ``held_bytes`` is the most that
    it held in the last samples, ``granted_bytes`` what it had been granted.
    """

    code: int
    oom_killed: bool = False
    held_bytes: int = 0
    granted_bytes: int = 0

    @property
    def is_kill(self) -> bool:
        """Whether a signal ended it that a process hardly ever gives itself: another program sent it."""
        return -self.code in (signal.SIGKILL, signal.SIGTERM)


def lacked_memory(death: Death, samples: Sequence[Sample]) -> bool:
    """Whether the worker died for lack of memory, by the ``samples`` of its last seconds."""
    if death.oom_killed:
        return True
    if -death.code not in _SIGNALS or not samples:
        return False
    if any(sample.pressure >= Level.CRITICAL for sample in samples):
        return True
    outgrown = 0 < death.granted_bytes < death.held_bytes
    return fullest(samples).used_percent >= (NEAR_IF_OUTGROWN_PERCENT if outgrown else NEAR_PERCENT)


def fullest(samples: Sequence[Sample]) -> Sample:
    """The sample with the highest use: samples after the death lack the worker's own bytes."""
    return max(samples, key=lambda sample: sample.used_percent)


class KillCounts(msgspec.Struct, frozen=True):
    """How often the kernel's OOM killer has killed: in the server's own control group, and on the whole host.

    None if a count can't be read. A kill counts in the victim's group, whichever group's limit caused it.
    """

    group: int | None = None
    host: int | None = None


def oom_killed(before: KillCounts, now: KillCounts, samples: Sequence[Sample]) -> bool:
    """Whether the kernel killed a process of ours between the two counts.

    Workers are in the server's own group, so its count decides. The host's count has the kills of all containers in
    it: it decides only if the group's count can't be read, and only if the host was nearly full.
    """
    if before.group is not None and now.group is not None:
        return now.group > before.group
    if before.host is None or now.host is None or now.host <= before.host:
        return False
    readings = [reading for sample in samples for reading in sample.readings if reading.source == "host"]
    return any(reading.percent >= NEAR_PERCENT for reading in readings)
