"""Gives back what the C library keeps of freed memory while a worker is busy; at rest ``give_back`` does."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from plimsoll.engine.load.weights import trim_malloc
from plimsoll.memory.sources.processes import of_status

_PROC = Path("/proc")
# So often the pool is looked at; emptying it takes a few milliseconds for each 100 MB.
_LOOK_S = 0.25
# What a pool may hold: a step takes its pages from there again. Of more than that others could make use.
_MOST_BYTES = 48 << 20


class AllocatorPool:
    """The difference between what the process holds and what MLX's arrays take, beyond what it was after the load.

    glibc keeps freed blocks below 4 MiB: with KV caches of some thousand tokens, which are copied whenever they grow or
    rows join and leave, these were up to 60 % of the arrays' size.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._due = 0.0
        self._own_bytes = _held_bytes() - mx.get_active_memory()

    def look(self) -> None:
        """Empty the pool where it holds much."""
        if sys.platform != "linux" or self._clock() < self._due:
            return
        self._due = self._clock() + _LOOK_S
        if _held_bytes() - mx.get_active_memory() - self._own_bytes > _MOST_BYTES:
            trim_malloc()


def _held_bytes() -> int:
    return (of_status(_PROC, os.getpid()) if sys.platform == "linux" else 0) or 0
