"""The readers of /proc: the machine, footprints, pressure, kills."""

import errno
import functools
import os
from pathlib import Path
from typing import Any

import pytest

from plimsoll.memory.death_evidence import KillCounts
from plimsoll.memory.sample import Level, Reading
from plimsoll.memory.sources import host, oom_kills, pressure, processes
from plimsoll.memory.sources.darwin import LibSystem
from plimsoll.memory.sources.files import OpenFile, number

GIB = 1024**3
MIB = 1024**2


def linux_host(machine: Any) -> host.HostReader:
    return host.reader("linux", machine.proc, LibSystem())


def test_the_machine_is_total_minus_available(machine: Any) -> None:
    read = functools.partial(linux_host(machine), {})
    assert read() == Reading("host", 24 * GIB, 4 * GIB)
    machine.meminfo(24 * GIB, 1 * GIB)
    assert read() == Reading("host", 24 * GIB, 23 * GIB)


def test_more_available_than_there_is_means_that_nothing_is_used(machine: Any) -> None:
    machine.meminfo(2 * GIB, 20 * GIB)
    assert linux_host(machine)({}) == Reading("host", 2 * GIB, 0)


def test_an_old_kernel_without_memavailable_is_estimated(machine: Any) -> None:
    machine.write(machine.proc / "meminfo", "MemTotal: 100 kB\nMemFree: 20 kB\nBuffers: 5 kB\nCached: 15 kB\n")
    assert linux_host(machine)({}) == Reading("host", 102400, 61440)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "MemTotal:\n",
        "MemTotal: -5 kB\nMemAvailable: 1 kB\n",
        "MemTotal: 0 kB\nMemAvailable: 0 kB\n",
        "\x00 MemTotal",
    ],
)
def test_meminfo_that_makes_no_sense_is_a_failure_of_the_host_alone(machine: Any, text: str) -> None:
    machine.write(machine.proc / "meminfo", text)
    sample = machine.sampler(limit_bytes=GIB)()
    assert sample.failed == ("host",)
    assert sample.binding.source == "limit"


def test_a_footprint_leaves_out_file_pages(machine: Any) -> None:
    machine.process(7, 300 * MIB, 20 * MIB)
    assert processes.of_status(machine.proc, 7) == 320 * MIB


def test_where_only_the_resident_size_is_given_it_is_taken(machine: Any) -> None:
    machine.write(machine.proc / "7" / "status", "Name:\tx\nState:\tS\nVmRSS:\t 1024 kB\n")
    assert processes.of_status(machine.proc, 7) == MIB


def test_the_dead_have_no_footprint(machine: Any) -> None:
    machine.write(machine.proc / "7" / "status", "Name:\tx\nState:\tZ (zombie)\n")
    assert processes.of_status(machine.proc, 7) is None
    assert processes.of_status(machine.proc, 8) is None


def test_a_process_that_ends_while_it_is_read_has_no_footprint(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(_fd: int, _size: int) -> bytes:
        raise ProcessLookupError(errno.ESRCH, "No such process")

    monkeypatch.setattr(processes.os, "read", ended)
    assert processes.of_status(machine.proc, os.getpid()) is None


def test_a_status_without_any_sense_is_a_value_error(machine: Any) -> None:
    machine.write(machine.proc / "7" / "status", "\x00\x01 RssAnon: many kB")
    with pytest.raises(ValueError, match="no memory figures for process 7"):
        processes.of_status(machine.proc, 7)


@pytest.mark.parametrize(("avg10", "level"), [("0.00", 0), ("10.00", 0), ("10.01", 1), ("99.99", 1), ("100", 1)])
def test_stalls_above_ten_percent_warn_and_never_more(machine: Any, avg10: str, level: int) -> None:
    machine.meminfo(24 * GIB, 6 * GIB)
    machine.psi(avg10)
    assert pressure.Stalls(machine.proc)() == Level(level)
    sample = machine.sampler()()
    assert (sample.pressure, sample.pressure_source) == (Level(level), "psi" if level else "")


def test_only_the_line_of_some_counts(machine: Any) -> None:
    machine.write(machine.proc / "pressure" / "memory", "some avg10=1.00 avg60=99.00\nfull avg10=50.00 avg60=50.00\n")
    assert pressure.Stalls(machine.proc)() == Level.NORMAL


def test_psi_that_is_switched_off_is_no_failure(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.sampler()().failed == ()

    def off(_self: OpenFile) -> bytes:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    stalls = pressure.Stalls(machine.proc)
    monkeypatch.setattr(OpenFile, "read", off)
    assert stalls() == Level.NORMAL


@pytest.mark.parametrize("text", ["", "some avg10=lots avg60=0\n", "full avg10=99.00 avg60=0\n"])
def test_psi_that_makes_no_sense_is_a_failure(machine: Any, text: str) -> None:
    machine.write(machine.proc / "pressure" / "memory", text)
    assert machine.sampler()().failed == ("psi",)
    (machine.proc / "pressure" / "memory").unlink()
    machine.spoil(machine.proc / "pressure" / "memory")
    assert machine.sampler()().failed == ("psi",)


def swapping(machine: Any, timeline: list[tuple[float, int]]) -> list[Level]:
    reader, levels = pressure.SwapOut(pressure.Vmstat(machine.proc, 4096)), []
    for time_s, pages in timeline:
        machine.vmstat(pages)
        levels.append(reader(time_s))
    return levels


N, W = Level.NORMAL, Level.WARNING


@pytest.mark.parametrize(
    ("timeline", "expected"),
    [
        pytest.param([(0, 10**9), (1, 10**9), (2, 10**9)], [N, N, N], id="what was swapped before does not count"),
        pytest.param([(0, 0), (1, 1000), (2, 2000)], [N, N, N], id="a thousand pages a second is little"),
        pytest.param([(0, 0), (1, 1001), (2, 1002)], [N, W, N], id="more is a storm while it lasts"),
        pytest.param([(0, 0), (0.1, 900), (0.2, 950), (1.0, 950)], [N, N, N, N], id="a burst is seen over its second"),
        pytest.param([(0, 0), (0.5, 900), (1.0, 1800), (1.5, 1800)], [N, N, W, W], id="a rate stands for its second"),
        pytest.param([(0, 9000), (1, 100), (2, 200)], [N, N, N], id="a counter that fell is no growth"),
        pytest.param([(0, 0), (0, 99999)], [N, N], id="no time has passed"),
    ],
)
def test_growing_swap_warns(machine: Any, timeline: list[tuple[float, int]], expected: list[Level]) -> None:
    assert swapping(machine, timeline) == expected


def test_swap_and_stalls_together_only_warn(machine: Any) -> None:
    sampler = machine.sampler()
    machine.meminfo(24 * GIB, 6 * GIB)
    machine.psi("99.00")
    for machine.time_s in (0.0, 1.0):
        machine.vmstat(int(machine.time_s * 10**7))
        sample = sampler()
    assert sample.pressure == W
    assert sample.pressure_source == "psi"
    machine.psi("0.00")
    assert sampler().pressure_source == "swap"


def test_a_vmstat_that_breaks_is_a_failure_and_starts_anew(machine: Any) -> None:
    sampler = machine.sampler()
    machine.vmstat(0)
    assert sampler().failed == ()
    machine.write(machine.proc / "vmstat", "pswpout -3\n")
    assert sampler().failed == ("swap",)
    machine.vmstat(10**9)
    machine.time_s = 5.0
    sample = sampler()
    assert (sample.failed, sample.pressure) == ((), N)


def test_kills_of_the_host_and_of_our_group_are_told_apart(machine: Any) -> None:
    assert oom_kills(machine.proc, machine.cgroup) == KillCounts(None, None)
    machine.vmstat(0, oom_kill=3)
    assert oom_kills(machine.proc, machine.cgroup) == KillCounts(None, 3)
    machine.belongs_to("0::/a")
    machine.mounts("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw")
    machine.write(machine.cgroup / "a" / "memory.events", "low 0\noom 9\noom_kill 2\noom_group_kill 0\n")
    assert oom_kills(machine.proc, machine.cgroup) == KillCounts(2, 3)
    machine.belongs_to("3:memory:/a")
    machine.mounts("35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory")
    control = "oom_kill_disable 7\nunder_oom 8\noom_kill 4\n"
    machine.write(machine.cgroup / "memory" / "a" / "memory.oom_control", control)
    assert oom_kills(machine.proc, machine.cgroup) == KillCounts(4, 3)


def test_kills_that_can_not_be_read_are_not_known(machine: Any) -> None:
    machine.spoil(machine.proc / "vmstat")
    machine.belongs_to("nonsense")
    machine.mounts("")
    assert oom_kills(machine.proc, machine.cgroup) == KillCounts(None, None)


def test_a_file_that_can_no_longer_be_read_is_opened_once_more(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("1")
    file = OpenFile(path)
    assert file.read() == b"1"
    with (tmp_path / "b").open("w") as write_only:  # reads from it fail, as from a removed control group
        os.dup2(write_only.fileno(), file._fd)  # type: ignore[arg-type] # open by now
    path.write_text("2")
    assert file.read() == b"2"
    file.close()
    path.unlink()
    with pytest.raises(FileNotFoundError):
        file.read()


def test_a_long_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("filler 1\n" * 20_000 + "last 2\n")
    assert number(OpenFile(tmp_path / "a").read(), "last") == 2


@pytest.mark.parametrize("line", ["name2 1", "xname 1", "name", "name -1", "name 1x", "name: x", " name 1"])
def test_only_the_very_name_with_a_number_counts(line: str) -> None:
    assert number(line.encode(), "name") is None
