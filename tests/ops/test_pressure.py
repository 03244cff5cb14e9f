"""The pure parts of the bench that puts the server under memory pressure, and the control group that it makes."""

import math
import subprocess
import sys
from pathlib import Path

import control_group
import pressure
import pressure_verdict as v
import pytest
from control_group import ControlGroup, NoGroup, counters, used_bytes
from hog import Hog, held_after, wanted_bytes

MIB = 1024**2


def figures(findings):
    return {one.figure: one.ok for one in findings}


def missed(mode, seen):
    return [one.figure for one in v.judge(mode, seen) if not one.ok]


@pytest.fixture
def seen():
    """A run of twenty seconds as it should be: at emergency at 12 s, stopped at 12.5, free at 15, answered at 16."""
    return v.Seen(
        began=10.0,
        ended=30.0,
        samples=[(9.0, 60.0), (12.0, 98.5), (13.0, 99.0), (15.1, 50.0)],
        workers=[v.WorkerSeen(1, 5.0, 12.5), v.WorkerSeen(2, 15.5)],
        streams=[v.Stream(6.0, 12.5, "insufficient_memory")],
        probes=[v.Probe(14.0, 14.1, "insufficient_memory"), v.Probe(15.2, 16.0, "ok")],
        live=[(11.0, 0.01), (12.0, 0.4)],
        filled=[12.0],
        free=[15.0],
        oom_kills={"server": 0, "hog": 1},
    )


# ---- the hog


def test_a_hog_with_a_rate_holds_more_with_each_second_and_no_more_than_it_wants():
    hog = Hog(mib_per_s=200.0)
    assert [held_after(hog, at, 500 * MIB) // MIB for at in (0.0, 1.0, 2.0, 9.0)] == [0, 200, 400, 500]


def test_a_hog_without_a_rate_jumps():
    assert held_after(Hog(), 0.0, 1024 * MIB) == 1024 * MIB


def test_a_hog_fills_what_is_missing_until_the_group_is_that_full():
    hog = Hog(percent=95.0, limit_bytes=1000 * MIB)
    assert wanted_bytes(hog, 0, 600 * MIB) == 350 * MIB
    # A hundred of it were let go of by others meanwhile.
    assert wanted_bytes(hog, 350 * MIB, 850 * MIB) == 450 * MIB
    assert wanted_bytes(hog, 100 * MIB, 990 * MIB) == 100 * MIB
    assert wanted_bytes(Hog(to_bytes=7 * MIB), 0, 990 * MIB) == 7 * MIB


# ---- the group


def test_the_kernels_counters_are_read_from_both_versions_files():
    assert counters("low 0\nhigh 0\nmax 12\noom 1\noom_kill 2\noom_group_kill 0\n")["oom_kill"] == 2
    assert counters("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")["oom_kill"] == 3
    assert counters("a b c\n\nname\nname text\n") == {}


def test_file_cache_does_not_count_as_used():
    stat = {"inactive_file": 1, "active_file": 2, "total_inactive_file": 10, "total_active_file": 20}
    assert used_bytes(100, stat, 1) == 70
    assert used_bytes(100, stat, 2) == 97


@pytest.fixture
def group():
    try:
        with ControlGroup(64 * MIB, ("ours", "other")) as made:
            yield made
    except NoGroup as error:
        pytest.skip(str(error))
    assert not made.folder.exists()


def test_who_takes_more_than_the_limit_is_killed_and_counted_in_its_own_group(group):
    with group.inside("other"):
        process = subprocess.Popen([sys.executable, "-c", f"bytearray({200 * MIB}); print(1)"], stdout=subprocess.PIPE)
    with process:
        assert process.communicate(timeout=60) == (b"", None)
    assert process.returncode == -9
    assert group.oom_kills("other") == 1
    assert group.oom_kills("ours") == 0
    # This process only passed through.
    assert not (group.folder / "other" / "cgroup.procs").read_text()


def test_a_process_in_the_group_counts_as_used(group):
    code = f"held = bytearray({30 * MIB}); print(1, flush=True); input()"
    with group.inside("ours"):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    with process:
        assert process.stdout.readline()
        assert 30 * MIB < group.used_bytes() < 64 * MIB
        process.communicate(b"\n", timeout=60)


def test_where_no_group_can_be_made_it_says_so_in_a_sentence_and_exits_with_a_code_of_its_own(
    monkeypatch, capsys, tmp_path
):
    (tmp_path / "cgroup.controllers").write_text("cpu")
    (tmp_path / "cgroup.subtree_control").write_text("cpu")
    tree = control_group.cgroup.Tree(2, (tmp_path,))
    monkeypatch.setattr(control_group, "_tree", lambda: tree)
    # Writing to what the kernel would refuse.
    monkeypatch.setattr(Path, "write_text", lambda *_: (_ for _ in ()).throw(PermissionError(1, "not permitted")))
    monkeypatch.setattr(sys, "argv", ["pressure.py", "ramp", "--runs", "1"])
    assert pressure.main() == pressure.NO_GROUP
    last = capsys.readouterr().out.splitlines()[-1]
    assert str(tmp_path) in last
    assert "run this as root" in last
    assert [one.name for one in tmp_path.iterdir() if one.is_dir()] == []


# ---- the verdict


@pytest.mark.parametrize("mode", ["ramp", "jump"])
def test_a_run_as_it_should_be_misses_nothing(seen, mode):
    assert missed(mode, seen) == []


def test_a_front_that_died_and_a_worker_that_the_kernel_killed_are_misses(seen):
    seen.front_died, seen.oom_kills = True, {"server": 1, "hog": 0}
    assert missed("ramp", seen) == ["the front lives", "the kernel kills nothing of ours"]
    # More than there is at once: the kernel has to take something.
    assert missed("jump", seen) == ["the front lives"]


def test_a_worker_that_runs_on_after_an_emergency_is_a_miss(seen):
    assert v.longest_after_emergency_s(seen) == pytest.approx(0.5)
    seen.workers[0].ended = 13.4
    assert missed("ramp", seen) == ["no worker runs 1 s after a sample at 98 %"]


def test_a_worker_that_never_ends_counts_until_the_end_of_the_run(seen):
    seen.workers[0].ended = math.inf
    assert v.longest_after_emergency_s(seen) == pytest.approx(18.0)


def test_a_worker_that_was_born_after_the_emergency_owes_nothing(seen):
    seen.workers = [v.WorkerSeen(1, 14.0)]
    assert v.longest_after_emergency_s(seen) == 0.0


def test_two_emergencies_have_to_meet_a_worker_each(seen):
    assert not v.proves_something("twice", seen)
    assert v.proves_something("ramp", seen)
    seen.free = [14.0, 22.0]
    seen.samples += [(20.0, 99.0)]
    seen.workers[1].ended = 20.3
    seen.probes.append(v.Probe(22.5, 23.0, "ok"))
    assert v.met_by_workers(seen) == 2
    assert v.proves_something("twice", seen)
    assert missed("twice", seen) == []


def test_a_hog_that_leaves_in_time_may_end_no_stream(seen):
    seen.streams = [v.Stream(6.0)]
    seen.oom_kills = {"server": 0, "hog": 0}
    assert missed("leave", seen) == []
    seen.streams.append(v.Stream(6.0, 25.0, "insufficient_memory"))
    assert missed("leave", seen) == ["streams that ended"]


def test_a_stream_that_just_ends_is_a_miss(seen):
    seen.streams.append(v.Stream(6.0, 12.5, "broken: the stream just ends"))
    assert missed("jump", seen) == ["streams with another end than an error that says why"]


def test_an_answer_that_comes_late_or_never_is_a_miss(seen):
    assert v.back_after_s(seen) == pytest.approx(1.0)
    seen.probes[-1].answered = 21.0
    assert missed("jump", seen) == ["an answer within 5 s"]
    seen.probes.pop()
    assert v.back_after_s(seen) == math.inf


def test_a_front_that_does_not_answer_is_a_miss(seen):
    seen.live.append((12.5, 10.0))
    assert missed("ramp", seen) == ["/health/live within 5 s"]
    seen.live.clear()
    assert missed("ramp", seen) == ["/health/live within 5 s"]


def test_the_summary_counts_runs(seen):
    good = v.judge("ramp", seen)
    seen.front_died = True
    bad = v.judge("ramp", seen)
    assert v.summary([good, bad, good])[0] == ("the front lives", 2, 3)
    assert all(kept == count for _, kept, count in v.summary([good, good]))
