"""What the C library keeps of freed memory is given back while a worker is busy."""

import sys

import pytest

from plimsoll.engine.load import allocator_pool
from plimsoll.engine.load.allocator_pool import AllocatorPool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's pool")
MIB = 1 << 20


class Process:
    """Of which the test says what it holds and what MLX's arrays take; ``trims`` counts how often it gave back."""

    def __init__(self, monkeypatch):
        self.now, self.held, self.active, self.trims = 0.0, 100 * MIB, 20 * MIB, 0
        monkeypatch.setattr(allocator_pool, "_held_bytes", lambda: self.held)
        monkeypatch.setattr(allocator_pool.mx, "get_active_memory", lambda: self.active)
        monkeypatch.setattr(allocator_pool, "trim_malloc", self.trim)
        self.pool = AllocatorPool(lambda: self.now)

    def trim(self):
        self.trims += 1

    def look(self, held, active):
        self.now += 1.0
        self.held, self.active = held * MIB, active * MIB
        self.pool.look()
        return self.trims


def test_the_pool_is_emptied_where_much_more_is_held_than_arrays_take(monkeypatch):
    process = Process(monkeypatch)
    assert process.look(1080, 1000) == 0, "what the process takes itself is no pool"
    assert process.look(1120, 1000) == 0
    assert process.look(1180, 1000) == 1


def test_the_pool_is_not_looked_at_in_every_step(monkeypatch):
    process = Process(monkeypatch)
    assert process.look(1180, 1000) == 1
    process.pool.look()
    assert process.trims == 1
