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

DEADLINE_S = 20.0
KILLED = e.WorkerKilled("m", 7)


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "plimsoll.memory")


def test_an_event_reaches_the_log_the_black_box_and_the_subscribers(
    box: BlackBox, path: Path, sample_at, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[e.Event] = []
    journal = Journal("ru", box)
    journal.subscribe(heard.append)
    journal.record(KILLED)
    journal.sample(sample_at(1.0), Level.NORMAL)
    journal.peak("m", 5)
    assert box.flush(DEADLINE_S)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("plimsoll.memory", logging.WARNING)
    assert record.message.startswith("Процесс модели m (pid 7) не остановился вовремя")
    assert [event for _, event in read.events(path, 60)] == heard == [KILLED]
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

    def bad(event: e.Event) -> None:
        raise RuntimeError("no room")

    journal.subscribe(bad)
    stop = journal.subscribe(heard.append)
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
    pids = [event.pid for _, event in read.events(path, 60)]
    assert {number: pids.count(number) for number in range(8)} == dict.fromkeys(range(8), 50)
