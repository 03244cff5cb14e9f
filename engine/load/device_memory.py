"""What MLX may keep of a GPU's memory beyond its arrays: the allocator's cache, and memory that is wired.

The limits are those of one worker process. Nothing here has run on a GPU yet: tests put a fake in the place of MLX.
"""

import sys
from typing import Any, Protocol

import mlx.core as mx

from plimsoll.engine.protocol import EngineOptions, ModelInfo

CLEAR_EVERY = 512
"""Decode steps after which the allocator's cache is emptied, as mlx-lm's own step does: KV caches grow in steps, and
the buffers that they have outgrown pile up (ml-explore/mlx-lm#926: 46.6 GB with them, 5.1 GB without)."""

_GIB = 1 << 30
# The cache holds a few chunks' activations for reuse. MLX's own bound is its memory limit: in effect there is none.
_CACHE_PART = 16
_LEAST_CACHE = _GIB // 4
_MOST_CACHE = 2 * _GIB
# Wired memory is lost to everything else: so much of the recommended working set stays for others' buffers.
_WIRED_MARGIN = 0.1
# The limit follows leases in steps of so much.
_WIRED_STEP = _GIB // 4
# The activations of a step, beside weights and KV caches.
_ACTIVATIONS = 0.05


class Allocator(Protocol):
    """What is used of ``mlx.core``; sizes in bytes. Both return the limit before."""

    def set_cache_limit(self, limit: int) -> int: ...

    def set_wired_limit(self, limit: int) -> int:
        """Raises ``ValueError`` for more than the system allows."""


class WiredMemory:
    """What this process wires of a GPU's memory: it follows the room for KV caches where that is leased."""

    def __init__(self, info: ModelInfo, options: EngineOptions, allocator: Allocator | Any = mx) -> None:
        self._recommended = info.working_set_bytes if info.device == "gpu" else 0  # CUDA has no wired limit
        self._weights = int(info.weights_bytes * (1 + _ACTIVATIONS))
        self._wanted = options.wired_bytes
        self._leased = options.kv_lease
        self._allocator = allocator
        self._wired = 0
        self._wire(options.kv_bytes)

    def follow(self, kv_bytes: int) -> None:
        """The KV caches may take so much from now on; a small change alone is not worth a call to the system."""
        if self._leased and abs(self._bytes(kv_bytes) - self._wired) >= _WIRED_STEP:
            self._wire(kv_bytes)

    def _bytes(self, kv_bytes: int) -> int:
        return wired_bytes(self._wanted, needed=self._weights + kv_bytes, recommended=self._recommended)

    def _wire(self, kv_bytes: int) -> None:
        if not self._recommended:
            return
        self._wired = self._bytes(kv_bytes)
        try:
            self._allocator.set_wired_limit(self._wired)
        except (ValueError, RuntimeError) as error:
            # An older macOS, or a system limit below the recommended size: slower where memory is short, and no worse.
            sys.stderr.write(f"plimsoll worker: no more memory is wired, {self._wired} bytes were refused: {error}\n")


def limit_memory(info: ModelInfo, options: EngineOptions, allocator: Allocator | Any = mx) -> WiredMemory:
    """Bound the allocator's cache of a GPU, and wire what the loaded model needs where the GPU recommends a size."""
    if info.device == "gpu":
        allocator.set_cache_limit(cache_bytes(info.working_set_bytes))
    return WiredMemory(info, options, allocator)


def cache_bytes(recommended: int) -> int:
    """Bytes that the allocator may keep of freed buffers; ``recommended`` is the device's working set, 0 if unknown."""
    if not recommended:
        return _MOST_CACHE
    return max(_LEAST_CACHE, min(recommended // _CACHE_PART, _MOST_CACHE))


def wired_bytes(wanted: int | None, *, needed: int, recommended: int) -> int:
    """How much this process may wire, in bytes.

    ``wanted`` is the key ``engine.wired_memory``: None for what the model needs (``needed``), 0 for nothing. Never more
    than the ``recommended`` working set less a margin.
    """
    most = int(recommended * (1 - _WIRED_MARGIN))
    return max(0, min(needed if wanted is None else wanted, most))
