"""The black box's reading end, for other threads and processes: connections of its own that change nothing."""

import contextlib
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from plimsoll.errors import Unavailable
from plimsoll.journal import store
from plimsoll.journal.events import Event, LastRun, from_json

# For the rounding of a process's start in two readings of it.
_SAME_START_S = 1.0


class SampleRow(msgspec.Struct, frozen=True):
    """One kept sample: ``at`` in seconds since the epoch, ``level`` as in ``memory.Level``, the rest in bytes.

    ``footprints`` is what the front and all workers hold together.
    """

    at: float
    percent: float
    level: int
    source: str
    used: int
    total: int
    footprints: int


def events(path: Path, since_s: float, kind: str | None = None) -> list[tuple[float, Event]]:
    """The events of the last ``since_s`` seconds, oldest first, with their times since the epoch.

    Raises ``Unavailable`` for a file that can't be read; none at all is no event.
    """
    rows = _select(
        path,
        "SELECT at, json FROM events WHERE at >= ? AND kind = coalesce(?, kind) ORDER BY at, rowid",
        (time.time() - since_s, kind),
    )
    return [(at, event) for at, text in rows if (event := from_json(text))]


def samples(path: Path, since_s: float, limit: int = 1000) -> list[SampleRow]:
    """The samples of the last ``since_s`` seconds, oldest first: of more than ``limit``, the fullest of each stretch.

    Raises ``Unavailable`` for a file that can't be read; none at all is no sample.
    """
    since = time.time() - since_s
    rows = _select(
        path,
        # SQLite takes the bare columns from the row that has the max().
        "SELECT at, max(percent), level, source, used, total, footprints FROM samples WHERE at >= ?1"
        " GROUP BY CAST((at - ?1) / ?2 AS INTEGER) ORDER BY at",
        (since, max(since_s / limit, 1e-3)),
    )
    return [SampleRow(*row) for row in rows]


def peaks(path: Path) -> dict[str, int]:
    """The largest measured footprint in bytes of each key; empty when the file can't be read."""
    with contextlib.suppress(Unavailable):
        return dict(_select(path, "SELECT model, bytes FROM peaks"))
    return {}


def last_run(path: Path) -> LastRun | None:
    """How the newest run that is over ended; None when there was none, or the file can't be read."""
    with contextlib.suppress(Unavailable):
        newest_first = "SELECT pid, pid_started, seen, percent, ended, how FROM runs ORDER BY rowid DESC"
        for pid, pid_started, seen, percent, ended, how in _select(path, newest_first):
            if ended is not None:
                return LastRun(clean=True, how=how, at=ended, percent=percent)
            if not _lives(pid, pid_started):
                return LastRun(clean=False, how="", at=seen, percent=percent)
    return None


def _select(path: Path, statement: str, values: Sequence[Any] = ()) -> list[Any]:
    if not path.is_file():
        return []
    try:
        with contextlib.closing(store.connect_read_only(path)) as connection:
            return connection.execute(statement, values).fetchall()
    except sqlite3.Error as error:
        raise Unavailable(f"the black box {path} can't be read: {error}", retry_after_s=5.0) from None


def _lives(pid: int, started: float) -> bool:
    """Whether this very process runs: in a container the next one often has the same pid."""
    try:
        return abs(psutil.Process(pid).create_time() - started) < _SAME_START_S
    except psutil.Error:
        return False
