"""The black box's reading end, for other threads and processes: connections of its own that change nothing."""

import contextlib
import sqlite3
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from plimsoll.errors import Unavailable
from plimsoll.journal import store
from plimsoll.journal.events import Entry, LastRun, from_json

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


def events(
    path: Path, since_s: float, kind: str | None = None, *, until_s: float = 0.0, newest: int | None = None
) -> list[Entry]:
    """The events from ``since_s`` to ``until_s`` seconds before now, oldest first; at most the ``newest`` of them.

    Raises ``Unavailable`` for a file that can't be read; none at all is no event.
    """
    now = time.time()
    rows = _select(
        path,
        "SELECT rowid, at, json FROM events WHERE at BETWEEN ? AND ? AND kind = coalesce(?, kind)"
        " ORDER BY at DESC, rowid DESC LIMIT ?",
        # A clock that was set back must not hide what was recorded before.
        (now - since_s, now - until_s if until_s else sys.float_info.max, kind, -1 if newest is None else newest),
    )
    return _entries(rows)


def events_after(path: Path, number: int, newest: int) -> list[Entry]:
    """The events with ids above ``number``, oldest first, at most the ``newest`` of them. Raises as ``events``."""
    return _entries(
        _select(
            path,
            "SELECT rowid, at, json FROM events WHERE rowid > ? ORDER BY rowid DESC LIMIT ?",
            (number, newest),
        )
    )


def samples(path: Path, since_s: float, limit: int = 1000, *, until_s: float = 0.0) -> list[SampleRow]:
    """The samples from ``since_s`` to ``until_s`` seconds before now, oldest first.

    Of more than ``limit``, the fullest of each stretch. Raises ``Unavailable`` for a file that can't be read; none
    at all is no sample.
    """
    now = time.time()
    rows = _select(
        path,
        # SQLite takes the bare columns from the row that has the max().
        "SELECT at, max(percent), level, source, used, total, footprints FROM samples WHERE at BETWEEN ?1 AND ?3"
        " GROUP BY CAST((at - ?1) / ?2 AS INTEGER) ORDER BY at",
        (
            now - since_s,
            max((since_s - until_s) / limit, 1e-3),
            now - until_s if until_s else sys.float_info.max,
        ),
    )
    return [SampleRow(*row) for row in rows]


class DayTokens(msgspec.Struct, frozen=True):
    """The requests of one day (2026-01-31) to one model with one key, and their tokens; ``reused`` of the prompts'."""

    day: str
    model: str
    key: str
    requests: int
    prompt: int
    reused: int
    completion: int


def tokens(path: Path, days: int) -> list[DayTokens]:
    """The sums of the last ``days`` days, the newest first. Raises ``Unavailable`` for a file that can't be read."""
    first = "SELECT * FROM tokens WHERE day > date('now', 'localtime', ?) ORDER BY day DESC, prompt + completion DESC"
    return [DayTokens(*row) for row in _select(path, first, (f"-{days} days",))]


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


def _entries(newest_first: list[Any]) -> list[Entry]:
    return [Entry(number, at, event) for number, at, text in reversed(newest_first) if (event := from_json(text))]


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
