"""The machine the tests run on: real files, real processes."""

import functools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from plimsoll.memory.sample import Tracked
from plimsoll.memory.sources import SystemSampler, cgroup, host, largest_others, oom_kills, sample
from plimsoll.memory.sources.cgroup import CgroupReader
from plimsoll.memory.sources.darwin import LibSystem

MIB = 1024**2

# Says "ready", allocates and touches 50 MiB at the first line, ends with its input.
_CHILD = (
    "import sys; print('ready', flush=True); sys.stdin.readline(); data = b'x' * (50 << 20);"
    "print(len(data), flush=True); sys.stdin.readline()"
)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _CHILD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_this_machine_gives_a_whole_sample() -> None:
    sampler = SystemSampler(limit_bytes=64 * 1024**3)
    for _ in range(3):
        taken = sampler()
        assert taken.failed == ()
        assert {"host", "limit"} <= {reading.source for reading in taken.readings}
        assert all(0 <= reading.used <= reading.total for reading in taken.readings)
        assert taken.footprints[os.getpid()] > 5 * MIB


def test_a_one_off_sample_needs_nothing() -> None:
    assert 0 < sample().used_percent < 100


def test_the_host_agrees_with_psutil() -> None:
    read = functools.partial(host.reader(sys.platform, Path("/proc"), LibSystem()), {})
    assert read().total == psutil.virtual_memory().total
    deadline, apart = time.monotonic() + 20, MIB
    while apart >= MIB and time.monotonic() < deadline:  # others allocate between the two reads
        memory, reading = psutil.virtual_memory(), read()
        apart = abs(memory.available - reading.available)
    assert apart < MIB


def test_a_childs_allocation_shows_in_its_footprint(child: subprocess.Popen[str]) -> None:
    assert child.stdin
    assert child.stdout
    sampler = SystemSampler()
    before = sampler([Tracked(child.pid)]).footprints[child.pid]
    child.stdin.write("\n")
    child.stdin.flush()
    assert child.stdout.readline() == f"{50 * MIB}\n"
    grown = sampler([Tracked(child.pid)]).footprints[child.pid] - before
    assert 49 * MIB < grown < 60 * MIB


def test_a_child_that_was_killed_is_gone_reaped_or_not(child: subprocess.Popen[str]) -> None:
    sampler = SystemSampler()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    zombie = sampler([Tracked(child.pid)])
    child.wait()
    reaped = sampler([Tracked(child.pid)])
    assert zombie.footprints.get(child.pid, 0) == 0
    assert child.pid not in reaped.footprints
    assert zombie.failed == reaped.failed == ()


def test_a_sample_is_cheap() -> None:
    sampler = SystemSampler(limit_bytes=64 * 1024**3)
    tracked = [Tracked(os.getpid())] * 5
    sampler(tracked)
    cost = []
    for _ in range(20):
        before = time.thread_time()
        sampler(tracked)
        cost.append(time.thread_time() - before)
    assert min(cost) < 0.005


def test_samplers_leave_no_open_files_behind() -> None:
    before = psutil.Process().num_fds()
    for _ in range(50):
        sample()
    # Other threads of the test process open files for a moment, too.
    assert psutil.Process().num_fds() < before + 25


def test_the_largest_other_processes_are_named(child: subprocess.Popen[str]) -> None:
    others = largest_others({os.getpid()})
    assert 1 <= len(others) <= 3
    assert os.getpid() not in {pid for _, pid, _ in others}
    assert [size for *_, size in others] == sorted((size for *_, size in others), reverse=True)
    every = largest_others((), count=10_000)
    assert child.pid in {pid for _, pid, _ in every}
    assert child.pid not in {pid for _, pid, _ in largest_others({child.pid}, count=10_000)}


def test_a_process_that_cannot_be_asked_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_self: psutil.Process) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil.Process, "memory_info", denied)
    assert largest_others(()) == []


def test_kills_are_counted_without_an_error() -> None:
    counts = oom_kills()
    assert all(count is None or count >= 0 for count in (counts.group, counts.host))


@pytest.mark.skipif(sys.platform != "linux", reason="needs control groups")
def test_our_own_control_group_is_found() -> None:
    me = Path("/proc/self")
    tree = cgroup.find((me / "cgroup").read_text(), (me / "mountinfo").read_text(), Path("/sys/fs/cgroup"))
    if tree is None:
        pytest.skip("no control groups to be seen here")
    assert str(os.getpid()) in (tree.folders[0] / "cgroup.procs").read_text().split()


@pytest.mark.skipif(sys.platform != "linux", reason="needs control groups")
def test_our_own_control_groups_figures_add_up(tmp_path: Path) -> None:
    """The real files under a made-up limit, which a test may not set for real."""
    me = Path("/proc/self")
    tree = cgroup.find((me / "cgroup").read_text(), (me / "mountinfo").read_text(), Path("/sys/fs/cgroup"))
    used = {1: "memory.usage_in_bytes", 2: "memory.current"}
    if tree is None or not (tree.folders[0] / used[tree.version]).exists():
        pytest.skip("no memory controller to be seen here")
    place = tmp_path / ("memory" if tree.version == 1 else "")
    place.mkdir(exist_ok=True)
    for name in (used[tree.version], "memory.stat"):
        (place / name).symlink_to(tree.folders[0] / name)
    (place / ("memory.limit_in_bytes" if tree.version == 1 else "memory.max")).write_text(str(2**50))
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("1:memory:/\n" if tree.version == 1 else "0::/\n")
    (reading,) = CgroupReader(tmp_path, tmp_path)()
    assert 0 < reading.used <= int((place / used[tree.version]).read_text()) + 64 * MIB
