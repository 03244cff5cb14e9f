"""What the C library keeps of freed memory is given back while a worker is busy."""

import sys
import threading

import pytest

from plimsoll.engine.load import allocator_pool
from plimsoll.engine.load.allocator_pool import AllocatorPool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's pool")
MIB = 1 << 20


class Process:
    """Of which the test says what it holds and what MLX's arrays take; ``trims`` counts how often it gave back."""

    def __init__(self, monkeypatch):
        self.now, self.held, self.active, self.trims = 0.0, 100 * MIB, 20 * MIB, 0
        self.trimmed = threading.Event()
        monkeypatch.setattr(allocator_pool, "_held_bytes", lambda: self.held)
        monkeypatch.setattr(allocator_pool.mx, "get_active_memory", lambda: self.active)
        monkeypatch.setattr(allocator_pool, "trim_malloc", self.trim)
        self.pool = AllocatorPool(lambda: self.now)

    def trim(self):
        self.trims += 1
        self.trimmed.set()

    def look(self, held, active, after_s=1.0):
        self.now += after_s
        self.held, self.active = held * MIB, active * MIB
        self.pool.look()
        return self.trims


@pytest.fixture
def process(monkeypatch):
    process = Process(monkeypatch)
    yield process
    process.pool.close()


def test_the_pool_is_emptied_where_much_more_is_held_than_arrays_take(process):
    assert process.look(1080, 1000) == 0, "what the process takes itself is no pool"
    assert process.look(1110, 1000) == 0
    assert process.look(1120, 1000) == 1


def test_a_pool_that_passes_make_use_of_is_seldom_emptied_and_a_far_larger_one_at_once(process):
    assert process.look(1120, 1000) == 1
    assert process.look(1120, 1000, after_s=0.1) == 1
    assert process.look(1150, 1000, after_s=0.0) == 2
    assert process.look(1120, 1000, after_s=0.3) == 3


def test_a_busy_worker_s_pool_is_looked_at_while_a_pass_runs(process):
    process.held = 400 * MIB
    assert not process.trimmed.wait(0.2), "a worker at rest is left alone"
    process.pool.busy()
    assert process.trimmed.wait(60)


def test_the_thread_of_a_pool_that_nobody_has_ends():
    before = set(threading.enumerate())
    pool = AllocatorPool()
    (thread,) = set(threading.enumerate()) - before
    pool.busy()
    del pool
    thread.join(60)
    assert not thread.is_alive()
