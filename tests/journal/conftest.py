"""A black box in a folder of its own, and another process that gets in its way."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from plimsoll.journal.blackbox import BlackBox
from plimsoll.memory.sample import Reading, Sample

DEADLINE_S = 60.0

LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "blackbox.sqlite"


@pytest.fixture
def make_box(path: Path) -> Iterator[Callable[..., BlackBox]]:
    boxes: list[BlackBox] = []

    def make(at: Path = path, **options: object) -> BlackBox:
        box = BlackBox(at, **{"retry_s": 0.01, **options})
        boxes.append(box)
        return box

    yield make
    for box in boxes:
        box.close("the test is over")


@pytest.fixture
def box(make_box: Callable[..., BlackBox]) -> BlackBox:
    """A black box whose file is there."""
    made = make_box()
    made.start()
    assert made.flush(DEADLINE_S)
    return made


@pytest.fixture
def locker(path: Path) -> Iterator[Callable[[], Callable[[], None]]]:
    """Locks the file from another process; what comes back unlocks it."""
    children: list[subprocess.Popen[str]] = []

    def lock() -> Callable[[], None]:
        child = subprocess.Popen(
            [sys.executable, "-c", LOCKER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        children.append(child)
        assert child.stdout
        assert child.stdout.readline() == "locked\n"

        def unlock() -> None:
            child.communicate(timeout=DEADLINE_S)

        return unlock

    yield lock
    for child in children:
        child.kill()
        child.communicate()


@pytest.fixture
def rows(path: Path) -> Callable[[str], list[tuple[object, ...]]]:
    def select(statement: str) -> list[tuple[object, ...]]:
        connection = sqlite3.connect(path)
        try:
            return connection.execute(statement).fetchall()
        finally:
            connection.close()

    return select


@pytest.fixture
def sample_at() -> Callable[..., Sample]:
    """A sample by its monotonic time and percent, of a machine with 1000 bytes."""

    def make(time_s: float, percent: float = 50.0) -> Sample:
        readings = (Reading("host", 1000, int(percent * 10)), Reading("cgroup", 1000, 10))
        return Sample(time_s, readings, footprints={1: 100, 2: 200})

    return make
