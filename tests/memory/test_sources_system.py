"""The sampler: which sources a sample has, and what happens to it when readers fail."""

import logging
import os
import threading
from typing import Any

import pytest

from plimsoll.memory.sample import Reading, Tracked
from plimsoll.memory.sources import SystemSampler

GIB = 1024**3
MIB = 1024**2


def test_a_sample_has_the_clocks_time_and_the_fronts_footprint(machine: Any) -> None:
    machine.time_s = 42.0
    sample = machine.sampler()()
    assert sample.time_s == 42.0
    assert sample.readings == (Reading("host", 24 * GIB, 4 * GIB),)
    assert sample.footprints == {os.getpid(): 100 * MIB}
    assert sample.failed == ()


def test_the_limit_holds_the_sum_of_front_and_workers(machine: Any) -> None:
    machine.process(900_001, 3 * GIB, 500 * MIB)
    machine.process(900_002, 1 * GIB)
    sample = machine.sampler(limit_bytes=6 * GIB)([Tracked(900_001), Tracked(900_002)])
    assert sample.binding == Reading("limit", 6 * GIB, 4 * GIB + 600 * MIB)


def test_a_worker_that_is_tracked_twice_counts_once(machine: Any) -> None:
    machine.process(900_001, GIB)
    sample = machine.sampler(limit_bytes=6 * GIB)([Tracked(900_001), Tracked(900_001), Tracked(os.getpid())])
    assert sample.binding.used == GIB + 100 * MIB


def test_a_worker_that_has_ended_is_left_out_silently(machine: Any) -> None:
    sample = machine.sampler(limit_bytes=6 * GIB)([Tracked(900_001)])
    assert sample.footprints == {os.getpid(): 100 * MIB}
    assert sample.failed == ()


def test_a_worker_whose_figures_break_takes_the_limit_along(machine: Any) -> None:
    machine.write(machine.proc / "900001" / "status", "garbage")
    sampler = machine.sampler(limit_bytes=6 * GIB)
    sample = sampler([Tracked(900_001)])
    assert sample.failed == ("footprint", "limit")
    assert [reading.source for reading in sample.readings] == ["host"]
    assert "900001" in sampler.errors["footprint"]


def test_a_front_without_figures_is_a_failure(machine: Any) -> None:
    (machine.proc / str(os.getpid()) / "status").unlink()
    assert machine.sampler()().failed == ("footprint",)


def test_when_nothing_can_be_read_the_reasons_are_in_the_error(machine: Any) -> None:
    machine.spoil(machine.proc / "meminfo")
    sampler = machine.sampler()
    with pytest.raises(OSError, match=r"no source of memory figures can be read \(host: IsADirectoryError"):
        sampler()
    (machine.proc / "meminfo").rmdir()
    machine.meminfo(2 * GIB, 1 * GIB)
    assert sampler().used_percent == 50


def test_a_reader_that_raises_anything_at_all_stays_on_its_own(machine: Any, fake_darwin: Any) -> None:
    sampler = machine.sampler(platform="darwin", darwin=fake_darwin(level=RuntimeError("odd")))
    assert sampler().failed == ("vm_pressure",)


def test_a_failing_reader_is_logged_once_and_so_is_its_return(machine: Any, caplog: pytest.LogCaptureFixture) -> None:
    sampler = machine.sampler()
    machine.write(machine.proc / "pressure" / "memory", "garbage")
    with caplog.at_level(logging.INFO, "plimsoll.memory"):
        sampler()
        sampler()
        assert sampler.errors == {"psi": "ValueError: no avg10 of some"}
        machine.psi("0.00")
        sampler()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert sampler.errors == {}


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_of_nothing_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match=r"memory\.limit"):
        SystemSampler(limit_bytes=limit)


def test_on_another_system_the_host_is_read(machine: Any, fake_darwin: Any) -> None:
    sample = machine.sampler(platform="freebsd15", darwin=fake_darwin({}, OSError()))()
    assert [reading.source for reading in sample.readings] == ["host"]


def test_threads_may_share_a_sampler(machine: Any) -> None:
    machine.psi("0.00")
    machine.vmstat(0)
    sampler, failed = machine.sampler(limit_bytes=GIB), []
    threads = [
        threading.Thread(target=lambda: failed.extend(one for _ in range(50) for one in sampler().failed))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
