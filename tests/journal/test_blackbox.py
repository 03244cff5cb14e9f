"""What is written, how long it is kept, and who may read it."""

import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from plimsoll.journal import events as e
from plimsoll.journal import read
from plimsoll.journal.blackbox import BlackBox
from plimsoll.memory.sample import Level, Sample

DEADLINE_S = 60.0
DAY_S = 86400.0

MakeBox = Callable[..., BlackBox]
SampleAt = Callable[..., Sample]


def test_an_event_is_read_back_with_its_time(make_box: MakeBox, path: Path, clock) -> None:
    box = make_box(now=clock)
    box.start()
    clock.at -= 5
    box.event(e.WorkerKilled("m", 7))
    box.event(e.ReadersRecovered())
    assert box.flush(DEADLINE_S)
    killed, recovered = e.Entry(1, clock.at, e.WorkerKilled("m", 7)), e.Entry(2, clock.at, e.ReadersRecovered())
    assert read.events(path, 60) == [killed, recovered]
    assert read.events(path, 60, "worker_killed") == [killed]
    assert read.events(path, 1) == []


def test_of_many_samples_a_second_one_is_kept(make_box: MakeBox, path: Path, clock, sample_at: SampleAt) -> None:
    box = make_box(now=clock)
    box.start()
    clock.at -= 10
    for step in range(25):
        clock.at += 0.1
        box.sample(sample_at(100 + step / 10, 50 + step), Level.WARNING)
    assert box.flush(DEADLINE_S)
    kept = read.samples(path, 60, limit=600)
    assert [row.percent for row in kept] == [50, 60, 70]
    assert kept[0] == read.SampleRow(kept[0].at, 50.0, 1, "host", 500, 1000, 300)


def test_of_more_samples_than_fit_the_fullest_of_each_stretch_is_shown(
    make_box: MakeBox, path: Path, clock, sample_at: SampleAt
) -> None:
    box = make_box(now=clock)
    clock.at -= 100
    for step in range(100):
        clock.at += 1
        box.sample(sample_at(step, 90.0 if step == 42 else 50.0), Level.NORMAL)
    box.start()
    assert box.flush(DEADLINE_S)
    shown = read.samples(path, 101, limit=10)
    assert 10 <= len(shown) <= 11
    assert max(row.percent for row in shown) == 90.0
    assert [row.at for row in shown] == sorted(row.at for row in shown)


def test_the_largest_footprint_is_kept_for_each_key(box: BlackBox, path: Path) -> None:
    for key, size in (("a", 5), ("b", 7), ("a", 9), ("a", 8)):
        box.peak(key, size)
    assert box.flush(DEADLINE_S)
    assert read.peaks(path) == {"a": 9, "b": 7}


def test_what_is_older_than_seven_days_goes_at_the_start_and_every_hour(
    make_box: MakeBox, clock, rows, sample_at: SampleAt
) -> None:
    def counts() -> list[int]:
        return [rows(f"SELECT count(*) FROM {table}")[0][0] for table in ("samples", "events", "peaks")]

    def fill(box: BlackBox) -> None:
        box.sample(sample_at(clock.at), Level.NORMAL)
        box.event(e.ReadersRecovered())
        box.peak(f"at {clock.at}", 1)
        assert box.flush(DEADLINE_S)

    first = make_box(now=clock)
    first.start()
    fill(first)
    first.close("stopped")
    clock.at += 8 * DAY_S
    second = make_box(now=clock)
    second.start()
    assert second.flush(DEADLINE_S)
    assert counts() == [0, 0, 0]
    fill(second)
    clock.at += 7 * DAY_S - 1
    fill(second)
    assert counts() == [2, 2, 2]
    clock.at += 60
    fill(second)
    assert counts() == [3, 3, 3], "within the hour nothing is deleted"
    clock.at += 3600
    fill(second)
    assert counts() == [3, 3, 3], "one went and one came"


def test_the_files_are_for_their_owner_only(box: BlackBox, path: Path) -> None:
    box.event(e.ReadersRecovered())
    assert box.flush(DEADLINE_S)
    modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in path.parent.iterdir()}
    assert modes == dict.fromkeys(("blackbox.sqlite", "blackbox.sqlite-wal", "blackbox.sqlite-shm"), 0o600)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_file_that_others_could_read_is_closed_to_them(make_box: MakeBox, path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    path.chmod(0o644)
    box = make_box()
    box.start()
    assert box.flush(DEADLINE_S)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_readers_see_whole_batches_while_it_is_written(box: BlackBox, path: Path) -> None:
    done = threading.Event()
    failures: list[Exception] = []

    def reader() -> None:
        try:
            while not done.is_set():
                found = [entry.event.pid for entry in read.events(path, 60)]
                assert found == list(range(len(found)))
                read.samples(path, 60)
                read.peaks(path)
                read.last_run(path)
        except Exception as error:  # noqa: BLE001 - told by the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=reader) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(300):
        box.event(e.WorkerKilled("m", number))
        if number % 10 == 0:
            assert box.flush(DEADLINE_S)
    assert box.flush(DEADLINE_S)
    done.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert not failures
    assert len(read.events(path, 60)) == 300


def test_another_process_reads_while_it_is_written(box: BlackBox, path: Path) -> None:
    box.event(e.WorkerKilled("m", 7))
    assert box.flush(DEADLINE_S)
    code = """
import sys
from pathlib import Path
from plimsoll.journal import read
print(read.events(Path(sys.argv[1]), 60)[0].event)
"""
    told = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "WorkerKilled(model='m', pid=7)"


def test_a_row_that_cant_be_stored_costs_only_itself(box: BlackBox, path: Path, sample_at: SampleAt) -> None:
    box.peak("too large for SQLite", 2**70)
    box.event(e.LoadFailed("m", object()))  # type: ignore[arg-type]
    box.event(e.ReadersRecovered())
    assert box.flush(DEADLINE_S)
    assert [entry.event for entry in read.events(path, 60)] == [e.ReadersRecovered()]
    assert read.peaks(path) == {}
    assert (box.dropped, box.problem) == (2, "")


def test_tokens_of_a_busy_time_are_all_counted_on_their_days(make_box: MakeBox, path: Path, clock) -> None:
    box = make_box(now=clock)

    def count() -> None:
        for _ in range(15_000):  # more than the queue of rows holds
            box.tokens("m", "key", (3, 2, 1))

    clock.at -= 2 * DAY_S  # never the same day, whatever the clocks are set to
    threads = [threading.Thread(target=count) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    clock.at += 2 * DAY_S
    box.tokens("m", "", (1, 0, 1))
    box.start()
    assert box.flush(DEADLINE_S)
    box.tokens("m", "", (1, 0, 1))
    assert box.flush(DEADLINE_S)
    today, before = read.tokens(path, 4)
    assert (today.key, today.requests, today.prompt, today.reused, today.completion) == ("", 2, 2, 0, 2)
    assert (before.key, before.requests) == ("key", 30_000)
    assert (before.prompt, before.reused, before.completion) == (90_000, 60_000, 30_000)
    assert box.dropped == 0


def test_without_a_file_there_is_nothing_to_read(path: Path) -> None:
    assert read.events(path, 60) == []
    assert read.samples(path, 60) == []
    assert read.peaks(path) == {}
    assert read.last_run(path) is None
    assert not path.parent.exists()


def test_a_box_that_was_never_started_can_be_closed(make_box: MakeBox, path: Path) -> None:
    box = make_box()
    box.event(e.ReadersRecovered())
    box.close("stopped")
    assert not path.exists()


def test_special_characters_in_the_path_are_only_characters(make_box: MakeBox, tmp_path: Path) -> None:
    odd = tmp_path / "a b?mode=memory#%41" / "ящик.sqlite"
    box = make_box(odd)
    box.start()
    box.event(e.ReadersRecovered())
    assert box.flush(DEADLINE_S)
    assert len(read.events(odd, 60)) == 1
    assert [one.name for one in tmp_path.iterdir()] == [odd.parent.name]
