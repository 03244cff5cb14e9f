"""After a restart the server says how the last run ended."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from plimsoll.journal import read
from plimsoll.journal.blackbox import BlackBox
from plimsoll.journal.lines import line, local_time
from plimsoll.memory.sample import Level

DEADLINE_S = 60.0
DAY_S = 86400.0

MakeBox = Callable[..., BlackBox]

SERVER = """
import sys
from pathlib import Path
from plimsoll.journal.blackbox import BlackBox
from plimsoll.memory.sample import Level, Reading, Sample

box = BlackBox(Path(sys.argv[1]))
box.start()
box.sample(Sample(1.0, (Reading("host", 1000, 500),)), Level.NORMAL)
box.sample(Sample(2.0, (Reading("host", 1000, 971),)), Level.CRITICAL)
assert box.flush()
print("written", flush=True)
sys.stdin.read()
box.close("SIGTERM")
"""


@pytest.fixture
def server(path: Path):
    child = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout
    assert child.stdout.readline() == "written\n"
    yield child
    child.kill()
    child.communicate()


def test_a_run_that_was_killed_left_its_last_figures(path: Path, server, make_box: MakeBox, rows) -> None:
    os.kill(server.pid, signal.SIGKILL)
    server.communicate(timeout=DEADLINE_S)
    found = read.last_run(path)
    assert found is not None
    assert (found.clean, found.percent) == (False, 97.1)
    assert line(found) == (
        f"⚠️ the last run ended without a word at {local_time(found.at)}, memory at 97.1%: it was killed or crashed"
    )
    assert rows("SELECT level FROM samples ORDER BY rowid") == [(0,), (2,)]
    # What a killed writer leaves behind does not keep the next one from writing, and this one is not "the last".
    box = make_box()
    box.start()
    assert box.flush(DEADLINE_S)
    assert read.last_run(path) == found


def test_a_run_that_stopped_in_order_says_by_what(path: Path, server) -> None:
    server.communicate("", timeout=DEADLINE_S)
    assert [one.name for one in path.parent.iterdir()] == [path.name], "a clean end leaves one file"
    found = read.last_run(path)
    assert found is not None
    assert (found.clean, found.how, found.percent) == (True, "SIGTERM", 97.1)


def test_a_run_that_still_lives_is_not_the_last_one(path: Path, server) -> None:
    assert read.last_run(path) is None


def test_a_new_process_with_the_old_pid_is_not_taken_for_the_old_run(
    box: BlackBox, path: Path, rows, sample_at
) -> None:
    """In a container the server is often pid 1 in every life."""
    box.sample(sample_at(1.0, 60.0), Level.NORMAL)
    assert box.flush(DEADLINE_S)
    assert read.last_run(path) is None
    connection = sqlite3.connect(path)
    connection.execute("UPDATE runs SET pid_started = pid_started - 60")
    connection.commit()
    connection.close()
    found = read.last_run(path)
    assert found is not None
    assert (found.clean, found.percent) == (False, 60.0)


def test_the_last_run_is_remembered_longer_than_its_samples(make_box: MakeBox, path: Path, clock, sample_at) -> None:
    first = make_box(now=clock)
    first.start()
    first.sample(sample_at(1.0, 60.0), Level.NORMAL)
    first.close("stopped")
    clock.at += 30 * DAY_S
    second = make_box(now=clock)
    second.start()
    assert second.flush(DEADLINE_S)
    found = read.last_run(path)
    assert found is not None
    assert (found.clean, found.how, found.percent) == (True, "stopped", 60.0)


def test_a_run_that_died_before_its_first_sample_has_no_figure(box: BlackBox, path: Path) -> None:
    box.close("stopped")
    found = read.last_run(path)
    assert found is not None
    assert found.percent is None
    assert line(found, "ru").endswith("память была занята на ?")
