"""What counts as used on Linux where file cache, shared memory or reserved pages make it look otherwise."""

from typing import Any

import pytest

from plimsoll.memory.ledger import plan
from plimsoll.memory.levels import LevelState, Thresholds, advance
from plimsoll.memory.sample import Level, Reading, Sample, Tracked

GIB = 1024**3
MIB = 1024**2
THRESHOLDS = Thresholds()


def settled(machine: Any) -> tuple[Sample, Level]:
    """The last of two samples, and the level that they lead to."""
    sampler, state = machine.sampler(), LevelState()
    for machine.time_s in (0.0, 1.0):
        sample = sampler()
        state = advance(state, sample, THRESHOLDS)
    return sample, state.level


def arc(machine: Any, size: int, c_min: int, **evictable: int) -> None:
    """As OpenZFS 2.2 writes it: two lines of heading, then name, type and value in columns."""
    names = ("mru_evictable_data", "mru_evictable_metadata", "mfu_evictable_data", "mfu_evictable_metadata")
    lines = {"hits": 7, "c": 99 * GIB, "c_min": c_min, "c_max": 99 * GIB, "size": size, "compressed_size": size}
    lines |= {name: evictable.get(name, 0) for name in names} if evictable else {}
    text = "".join(f"{name:<31} 4    {value}\n" for name, value in lines.items())
    heading = f"9 1 0x01 147 39984 5079542437 18446744073\n{'name':<31} type data\n"
    machine.write(machine.proc / "spl" / "kstat" / "zfs" / "arcstats", heading + text)


def test_weights_in_the_cache_of_zfs_fill_no_machine(machine: Any) -> None:
    machine.meminfo(64 * GIB, 3 * GIB)
    arc(machine, 40 * GIB, 2 * GIB, mru_evictable_data=25 * GIB, mfu_evictable_data=14 * GIB)
    sample, level = settled(machine)
    assert sample.readings == (Reading("host", 64 * GIB, 23 * GIB),)
    assert level == Level.NORMAL
    assert plan(30 * GIB, (), sample, THRESHOLDS.critical).verdict == "load"


def test_what_zfs_cannot_evict_counts(machine: Any) -> None:
    machine.meminfo(64 * GIB, 3 * GIB)
    arc(machine, 40 * GIB, 2 * GIB, mru_evictable_data=5 * GIB, mfu_evictable_metadata=1 * GIB)
    assert machine.sampler()().binding.used == 55 * GIB


def test_an_old_zfs_gives_back_down_to_its_smallest_size(machine: Any) -> None:
    machine.meminfo(64 * GIB, 3 * GIB)
    arc(machine, 40 * GIB, 2 * GIB)
    assert machine.sampler()().binding.used == 23 * GIB
    arc(machine, 1 * GIB, 2 * GIB)
    assert machine.sampler()().binding.used == 61 * GIB


@pytest.mark.parametrize("text", ["", "size 4 x\nc_min 4 5\n", "size 4 5\n", "\x00"])
def test_a_cache_of_zfs_that_makes_no_sense_counts_as_used_and_is_named(machine: Any, text: str) -> None:
    machine.meminfo(64 * GIB, 3 * GIB)
    machine.write(machine.proc / "spl" / "kstat" / "zfs" / "arcstats", text)
    sampler = machine.sampler()
    sample = sampler()
    assert (sample.binding.used, sample.failed) == (61 * GIB, ("zfs_arc",))
    assert "counts as used" in sampler.errors["zfs_arc"]


def test_without_memavailable_shared_memory_is_used_and_slabs_are_not(machine: Any) -> None:
    figures = {"MemTotal": 100, "MemFree": 10, "Buffers": 2, "Cached": 50, "SReclaimable": 8, "Shmem": 30}
    machine.write(machine.proc / "meminfo", "".join(f"{name}: {value} kB\n" for name, value in figures.items()))
    assert machine.sampler()().binding == Reading("host", 102400, 60 * 1024)


def test_reserved_huge_pages_are_used_although_nobody_holds_them(machine: Any) -> None:
    """The kernel's own account: MemAvailable leaves the pool out, and no worker's allocation may come from it."""
    machine.meminfo(64 * GIB, 20 * GIB)
    with (machine.proc / "meminfo").open("a") as file:
        file.write("HugePages_Total: 16384\nHugePages_Free: 16384\nHugepagesize: 2048 kB\nHugetlb: 33554432 kB\n")
    assert machine.sampler()().binding == Reading("host", 64 * GIB, 44 * GIB)


@pytest.mark.parametrize(
    ("used", "pressure", "level", "named"),
    [
        (75, Level.WARNING, Level.WARNING, "psi"),
        (90, Level.WARNING, Level.WARNING, "host"),
        (96, Level.WARNING, Level.CRITICAL, "host"),
        (99, Level.WARNING, Level.EMERGENCY, "host"),
        (60, Level.WARNING, Level.NORMAL, "host"),
        (96, Level.NORMAL, Level.CRITICAL, "host"),
    ],
)
def test_a_signal_is_named_only_for_a_level_that_use_alone_would_not_reach(
    used: int, pressure: Level, level: Level, named: str
) -> None:
    sample = Sample(0.0, (Reading("host", 100, used),), pressure, "psi" if pressure else "")
    assert sample.source_of(level, THRESHOLDS.of(level)) == named


def storm(machine: Any) -> Any:
    """A machine that stalls and swaps as hard as it can, at its second sample."""
    sampler = machine.sampler()
    machine.psi("99.00")
    for machine.time_s in (0.0, 1.0):
        machine.vmstat(int(machine.time_s * 10**7))
        sample = sampler()
    return sample


def test_stalls_and_swap_of_dropping_file_cache_are_no_squeeze(machine: Any) -> None:
    """Reading a file through a full cache shows as a stall, though three quarters of the machine can be had."""
    machine.meminfo(24 * GIB, 18 * GIB)
    sample = storm(machine)
    assert (sample.pressure, sample.pressure_source, sample.failed) == (Level.NORMAL, "", ())


@pytest.mark.parametrize(("available", "level"), [(8, Level.NORMAL), (7, Level.WARNING), (4, Level.WARNING)])
def test_where_less_than_three_tenths_are_left_they_count(machine: Any, available: int, level: Level) -> None:
    machine.meminfo(24 * GIB, available * GIB)
    assert storm(machine).pressure == level


def test_they_count_for_a_group_that_is_nearly_full(machine: Any) -> None:
    machine.meminfo(24 * GIB, 20 * GIB)
    machine.belongs_to("0::/")
    machine.v2("", 4 * GIB, 3 * GIB)
    assert storm(machine).pressure == Level.WARNING
    machine.v2("", 4 * GIB, 3 * GIB, active_file=2 * GIB)
    assert storm(machine).pressure == Level.NORMAL


def test_a_limit_of_our_own_does_not_make_them_count(machine: Any) -> None:
    machine.meminfo(24 * GIB, 20 * GIB)
    machine.process(7, 3 * GIB)
    sampler = machine.sampler(limit_bytes=4 * GIB)
    machine.psi("99.00")
    assert sampler([Tracked(7)]).pressure == Level.NORMAL


@pytest.mark.parametrize("broken", ["meminfo", "self/cgroup"])
def test_where_use_may_be_higher_than_what_was_read_they_count(machine: Any, broken: str) -> None:
    machine.belongs_to("0::/")
    machine.v2("", 4 * GIB, 1 * GIB)
    machine.spoil(machine.proc / broken)
    assert storm(machine).pressure == Level.WARNING
