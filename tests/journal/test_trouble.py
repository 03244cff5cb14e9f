"""Whatever happens to the file, the callers go on, and it is said once."""

import logging
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from plimsoll.errors import Unavailable
from plimsoll.journal import events as e
from plimsoll.journal import read, store
from plimsoll.journal.blackbox import BlackBox
from plimsoll.memory.sample import Level, Sample

DEADLINE_S = 60.0

MakeBox = Callable[..., BlackBox]


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "plimsoll.memory")


def wait_for_problem(box: BlackBox, words: str) -> None:
    """Until its thread has met it, and what is flushed does not get into the file."""
    until = time.monotonic() + DEADLINE_S
    while words not in box.problem:
        assert time.monotonic() < until, box.problem
        time.sleep(0.01)
    assert not box.flush(0.01)


@pytest.fixture
def _sqlite_waits_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a lock, so that even on a busy machine it is plain that somebody else did not wait."""
    monkeypatch.setattr(store, "_BUSY_S", DEADLINE_S)


@pytest.mark.usefixtures("_sqlite_waits_long")
def test_a_lock_held_by_another_process_blocks_no_caller_and_loses_nothing(
    box: BlackBox, path: Path, locker, caplog: pytest.LogCaptureFixture
) -> None:
    unlock = locker()
    began = time.monotonic()
    for number in range(1000):
        box.event(e.WorkerKilled("m", number))
    assert time.monotonic() - began < 10.0, "SQLite itself would wait for the lock"
    assert not box.flush(0.01)
    unlock()
    assert box.flush(DEADLINE_S)
    assert [entry.event.pid for entry in read.events(path, 60)] == list(range(1000))
    assert box.dropped == 0


def test_while_nothing_can_be_written_the_oldest_fall_out_and_it_is_said_once(
    make_box: MakeBox, tmp_path: Path, sample_at: Callable[..., Sample], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "state"
    folder.write_text("a file where the folder should be")
    box = make_box(folder / "blackbox.sqlite")
    box.start()
    for number in range(11_000):
        box.event(e.WorkerKilled("m", number))
        box.sample(sample_at(number), Level.NORMAL)
    wait_for_problem(box, "can't be written")
    assert box.failures >= 1
    assert len(caplog.records) == 1
    assert "the server goes on without it" in caplog.text
    folder.unlink()
    assert box.flush(DEADLINE_S)
    found = [entry.event.pid for entry in read.events(box.path, 60)]
    assert found[-1] == 10_999
    assert 10_000 <= len(found) <= 11_000
    assert len(read.samples(box.path, 60, 10**9)) <= 1200
    assert 11_000 - len(found) <= box.dropped
    assert box.problem == ""
    assert "is written again" in caplog.records[-1].message
    assert len(caplog.records) == 2


@pytest.mark.parametrize("content", [b"this is no database at all " * 100, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_broken_file_is_renamed_and_a_new_one_begins(
    make_box: MakeBox, path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    box = make_box()
    box.start()
    box.event(e.ReadersRecovered())
    assert box.flush(DEADLINE_S)
    assert len(read.events(path, 60)) == 1
    assert path.with_name("blackbox.sqlite.broken").read_bytes() == content
    assert [record.message for record in caplog.records if "renamed" not in record.message] == []
    assert len(caplog.records) == 1


def test_a_file_that_breaks_while_it_is_used_is_renamed_too(box: BlackBox, path: Path) -> None:
    # Another connection's commit makes the writer look at the file again.
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("INSERT INTO peaks VALUES ('m', 1, 1)")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * (size - 100))
    box.event(e.ReadersRecovered())
    assert box.flush(DEADLINE_S)
    assert path.with_name("blackbox.sqlite.broken").exists()
    assert len(read.events(path, 60)) == 1


def test_the_folder_that_is_deleted_meanwhile_is_made_again(box: BlackBox, path: Path) -> None:
    shutil.rmtree(path.parent)
    box.event(e.ReadersRecovered())
    assert box.flush(DEADLINE_S)
    assert len(read.events(path, 60)) == 1


def test_the_database_of_another_program_is_left_alone(
    make_box: MakeBox, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE photos (id)")
    connection.close()
    before = path.read_bytes()
    box = make_box()
    box.start()
    box.event(e.ReadersRecovered())
    wait_for_problem(box, "another program")
    assert "another program" in caplog.text
    box.close("stopped")
    assert path.read_bytes() == before


def test_a_full_disk_is_waited_out(make_box: MakeBox, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = store.connect
    full = True

    def connect_to_small_disk(at: Path) -> sqlite3.Connection:
        connection = connect(at)
        if full:
            # What a full disk is to SQLite: no page more.
            connection.execute("PRAGMA max_page_count = 1")
        return connection

    monkeypatch.setattr(store, "connect", connect_to_small_disk)
    box = make_box()
    box.start()
    for number in range(2000):
        box.event(e.WorkerKilled("m", number))
    wait_for_problem(box, "full")
    full = False
    assert box.flush(DEADLINE_S)
    assert len(read.events(path, 60)) == 2000


@pytest.mark.usefixtures("_sqlite_waits_long")
def test_close_gives_up_on_a_locked_file_in_time(box: BlackBox, locker) -> None:
    locker()
    began = time.monotonic()
    box.close("stopped", timeout_s=0.01)
    assert time.monotonic() - began < 10.0


def test_reading_a_broken_file_is_an_error_with_a_sentence(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database " * 100)
    with pytest.raises(Unavailable, match=r"the black box .* can't be read: file is not a database"):
        read.events(path, 60)
    assert read.peaks(path) == {}
    assert read.last_run(path) is None
