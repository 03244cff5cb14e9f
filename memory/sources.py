"""What the operating system says about memory: the only module here that does I/O."""

import time
from collections.abc import Sequence

import psutil

from plimsoll.memory.sample import Reading, Sample, Tracked


def host() -> Reading:
    """The machine: total minus what can be had without swapping, over total."""
    memory = psutil.virtual_memory()
    return Reading("host", memory.total, memory.total - memory.available)


def sample(tracked: Sequence[Tracked] = ()) -> Sample:  # noqa: ARG001 - footprints are not read yet
    """Every source that applies on this machine."""
    return Sample(time.monotonic(), (host(),))
