"""Gives back what the C library keeps of freed memory while a worker is busy; at rest ``give_back`` does."""

import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from plimsoll.engine.load.weights import trim_malloc
from plimsoll.memory.sources.processes import of_status

_PROC = Path("/proc")
# One pass that copies the KV caches of many layers frees 100 MB in so long.
_LOOK_S = 0.02
# What a pool may hold: a step takes its pages from there again. Of more than that others could make use.
_MOST_BYTES = 32 << 20
# So often a pool that is larger is emptied, which takes a few milliseconds for each 100 MB; a far larger one at once.
_EMPTY_S = 0.25
_FAR_TOO_MUCH_BYTES = 2 * _MOST_BYTES


class AllocatorPool:
    """The difference between what the process holds and what MLX's arrays take, beyond what it was after the load.

    glibc keeps freed blocks below 4 MiB: with KV caches of some thousand tokens, which are copied whenever they grow or
    rows join and leave, these were up to 60 % of the arrays' size. A pass over the model frees much before it ends, so
    a thread of its own looks while the worker is busy.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due = 0.0
        self._own_bytes = _held_bytes() - mx.get_active_memory()
        self._busy = threading.Event()
        self.is_closed = False
        if sys.platform == "linux":
            weakref.finalize(self, self._busy.set)  # a pool that nobody has any more wakes its thread to end
            arguments = (weakref.ref(self), self._busy)
            threading.Thread(target=_watch, args=arguments, name="allocator-pool", daemon=True).start()

    def busy(self) -> None:
        """The worker computes: look from now on."""
        self._busy.set()

    def rest(self) -> None:
        """The worker rests: there is nothing to look for."""
        self._busy.clear()

    def close(self) -> None:
        """End the thread."""
        self.is_closed = True
        self._busy.set()

    def look(self) -> None:
        """Empty the pool where it holds much."""
        pool = _held_bytes() - mx.get_active_memory() - self._own_bytes
        if pool > _FAR_TOO_MUCH_BYTES or (pool > _MOST_BYTES and self._clock() >= self._due):
            self._due = self._clock() + _EMPTY_S
            trim_malloc()


def _watch(known: "weakref.ref[AllocatorPool]", busy: threading.Event) -> None:
    while busy.wait() and (pool := known()) and not pool.is_closed:
        pool.look()
        del pool
        time.sleep(_LOOK_S)


def _held_bytes() -> int:
    return (of_status(_PROC, os.getpid()) if sys.platform == "linux" else 0) or 0
