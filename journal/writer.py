"""The black box's one writing connection: rows in, in one transaction, with the run's own row and the retention."""

import contextlib
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from plimsoll import __version__
from plimsoll.journal import store
from plimsoll.journal.events import Event, to_json

SAMPLE = "INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?)"
EVENT = "INSERT INTO events (rowid, at, kind, json) VALUES (?, ?, ?, ?)"
# Only a maximum moves the time, so a peak that is not reached any more is forgotten after the retention.
PEAK = """INSERT INTO peaks VALUES (?, ?, ?) ON CONFLICT (model) DO UPDATE
    SET bytes = excluded.bytes, at = excluded.at WHERE excluded.bytes >= bytes"""
# A day is one of this machine's clock.
TOKENS = """INSERT INTO tokens VALUES (date(?, 'unixepoch', 'localtime'), ?, ?, ?, ?, ?, ?)
    ON CONFLICT (day, model, key) DO UPDATE SET requests = requests + excluded.requests,
    prompt = prompt + excluded.prompt, reused = reused + excluded.reused,
    completion = completion + excluded.completion"""

_RUN = "INSERT OR IGNORE INTO runs (started, pid, pid_started, version, seen) VALUES (?, ?, ?, ?, ?)"
_SEEN = "UPDATE runs SET seen = ?, percent = coalesce(?, percent) WHERE started = ? AND pid = ?"
_ENDED = "UPDATE runs SET ended = ?, how = ? WHERE started = ? AND pid = ?"
_PRUNE = (
    "DELETE FROM samples WHERE at < ?",
    "DELETE FROM events WHERE at < ?",
    "DELETE FROM peaks WHERE at < ?",
    # The last run is told about however long ago it was.
    "DELETE FROM runs WHERE seen < ? AND rowid < (SELECT max(rowid) FROM runs) - 1",
)
_PRUNE_TOKENS = "DELETE FROM tokens WHERE day < date(?, 'unixepoch', 'localtime')"
_PRUNE_EVERY_S = 3600.0
# The row is at fault, not the file: trying again would never help.
_BAD_ROW = (
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
    sqlite3.IntegrityError,
    sqlite3.DataError,
    OverflowError,
    ValueError,
    TypeError,
)

Row = tuple[str, tuple[Any, ...]]
"""One of the statements above and its values; an ``Event`` among them is stored as its kind and its JSON."""
End = tuple[float, str]
"""When the run ended, and how."""


class Writer:
    """Opens the file when it is needed, and again when it has been replaced or ``close`` was called. One thread's."""

    def __init__(self, path: Path, started: float) -> None:
        self._path = path
        self._started = started
        self._pid = os.getpid()
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._pruned_at: float | None = None

    def write(self, rows: Sequence[Row], now: float, end: End | None) -> int:
        """All of ``rows`` or none; the count of those that can't be stored at all. Raises as ``store.connect``."""
        if self._connection is None or self.is_replaced():
            self.close()
            self._connection = store.connect(self._path)
            self._identity = self._file()
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        bad = sum(not self._insert(connection, row) for row in rows)
        self._note_run(connection, rows, now, end)
        self._prune(connection, now)
        connection.execute("COMMIT")
        return bad

    def is_replaced(self) -> bool:
        """Whether the path leads to another file now, or to none."""
        return self._identity is not None and self._file() != self._identity

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
        self._connection = self._identity = None

    def _file(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _insert(self, connection: sqlite3.Connection, row: Row) -> bool:
        statement, values = row
        try:
            if isinstance(event := values[-1], Event):
                values = (*values[:-1], event.kind, to_json(event))
            connection.execute(statement, values)
        except _BAD_ROW:
            return False
        return True

    def _note_run(self, connection: sqlite3.Connection, rows: Sequence[Row], now: float, end: End | None) -> None:
        run = (self._started, self._pid)
        connection.execute(_RUN, (*run, psutil.Process().create_time(), __version__, self._started))
        percents = [values[1] for statement, values in rows if statement == SAMPLE]
        connection.execute(_SEEN, (now, percents[-1] if percents else None, *run))
        if end:
            connection.execute(_ENDED, (*end, *run))

    def _prune(self, connection: sqlite3.Connection, now: float) -> None:
        # The wall clock may also be set back.
        if self._pruned_at is None or not 0 <= now - self._pruned_at < _PRUNE_EVERY_S:
            for statement in _PRUNE:
                connection.execute(statement, (now - store.KEPT_S,))
            connection.execute(_PRUNE_TOKENS, (now - store.TOKENS_KEPT_S,))
            self._pruned_at = now
