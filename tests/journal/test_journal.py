"""One call of record is one line, one row and one call of every subscriber, and never an exception."""

import logging
import threading
from pathlib import Path

import pytest

from plimsoll.journal import events as e
from plimsoll.journal import read
from plimsoll.journal.blackbox import BlackBox
from plimsoll.journal.journal import Journal
from plimsoll.memory.sample import Level

DEADLINE_S = 60.0
KILLED = e.WorkerKilled("m", 7)


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "plimsoll.memory")


def test_an_event_reaches_the_log_the_black_box_and_the_subscribers(
    box: BlackBox, path: Path, sample_at, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[e.Event] = []
    journal = Journal("ru", box)
    journal.subscribe(lambda entry: heard.append(entry.event))
    journal.record(KILLED)
    journal.sample(sample_at(1.0), Level.NORMAL)
    journal.peak("m", 5)
    assert box.flush(DEADLINE_S)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("plimsoll.memory", logging.WARNING)
    assert record.message.startswith("Процесс модели m (pid 7) не остановился вовремя")
    assert [entry.event for entry in read.events(path, 60)] == heard == [KILLED]
    assert len(read.samples(path, 60)) == 1
    assert read.peaks(path) == {"m": 5}


def test_without_a_black_box_there_is_still_the_log(sample_at, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal()
    journal.record(KILLED)
    journal.sample(sample_at(1.0), Level.NORMAL)
    journal.peak("m", 5)
    assert journal.problem == ""
    assert len(caplog.records) == 1


def test_a_percent_sign_in_a_name_is_only_a_percent_sign(caplog: pytest.LogCaptureFixture) -> None:
    Journal().record(e.LoadFailed("100%s", "%d"))
    assert "100%s" in caplog.text


def test_a_subscriber_that_raises_is_dropped_and_the_others_hear_on(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[e.Event] = []
    journal = Journal()

    def bad(_entry: e.Entry) -> None:
        raise RuntimeError("no room")

    journal.subscribe(bad)
    stop = journal.subscribe(lambda entry: heard.append(entry.event))
    journal.record(KILLED)
    journal.record(KILLED)
    stop()
    stop()
    journal.record(KILLED)
    assert heard == [KILLED, KILLED]
    assert caplog.text.count("is dropped") == 1


def test_an_event_that_has_no_line_still_has_its_row(
    box: BlackBox, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Journal("en", box).record(e.Forecast(float("inf"), "many"))  # type: ignore[arg-type]
    assert box.flush(DEADLINE_S)
    assert "has no line" in caplog.text


def test_many_threads_record_at_once(box: BlackBox, path: Path) -> None:
    journal = Journal("en", box)
    begin = threading.Barrier(8)

    def record(number: int) -> None:
        begin.wait()
        for _ in range(50):
            journal.record(e.WorkerKilled("m", number))

    threads = [threading.Thread(target=record, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert box.flush(DEADLINE_S)
    pids = [entry.event.pid for entry in read.events(path, 60)]
    assert {number: pids.count(number) for number in range(8)} == dict.fromkeys(range(8), 50)


def test_ids_rise_with_every_event_also_when_the_clock_is_set_back(box: BlackBox, path: Path) -> None:
    times = iter([2e9, 2e9, 1e9, 2e9 + 1])
    journal = Journal("en", box, now=lambda: next(times))
    assert journal.last_id == 0
    for _ in range(4):
        journal.record(KILLED)
    ids = [entry.id for entry in journal.recent()]
    assert ids == [2 * 10**15, 2 * 10**15 + 1, 2 * 10**15 + 2, 2 * 10**15 + 10**6]
    assert journal.last_id == ids[-1] < 2**53
    assert box.flush(DEADLINE_S)
    assert [entry.id for entry in read.events_after(path, 0, 10)] == ids, "the row's id is the event's"
    assert [entry.id for entry in read.events_after(path, ids[1], 10)] == ids[2:]
    assert [entry.id for entry in read.events_after(path, 0, 3)] == ids[1:]


def test_ids_go_on_rising_in_a_file_of_the_version_before(make_box, path: Path) -> None:
    """Rows had no numbers of ours: SQLite counted them from 1."""
    old = make_box()
    old.start()
    old.event(KILLED)
    assert old.flush(DEADLINE_S)
    old.close("upgraded")
    box = make_box()
    box.start()
    journal = Journal("en", box)
    journal.record(KILLED)
    assert box.flush(DEADLINE_S)
    first, second = read.events(path, 60)
    assert first.id == 1 < second.id == journal.last_id


def test_all_threads_see_one_order() -> None:
    journal = Journal()
    heard: list[int] = []
    journal.subscribe(lambda entry: heard.append(entry.id))
    begin = threading.Barrier(8)

    def record() -> None:
        begin.wait()
        for _ in range(200):
            journal.record(KILLED)

    threads = [threading.Thread(target=record) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert len(heard) == 1600
    assert heard == sorted(set(heard))
    assert [entry.id for entry in journal.recent()] == heard[-1000:]


def test_a_subscriber_may_record() -> None:
    journal = Journal()
    journal.subscribe(lambda entry: entry.event == KILLED and journal.record(e.ReadersRecovered()))
    journal.record(KILLED)
    assert [entry.event for entry in journal.recent()] == [KILLED, e.ReadersRecovered()]
