"""The black box's file: its schema, connections to it, and what to do with a broken one."""

import contextlib
import os
import sqlite3
from pathlib import Path

import platformdirs

KEPT_S = 7 * 86400.0
TOKENS_KEPT_S = 366 * 86400.0

# "PLIM", and the version of the schema below.
_APPLICATION_ID = 0x504C494D
_VERSION = 1
# What a connection waits for another process's lock.
_BUSY_S = 1.0
_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS samples (
    at REAL NOT NULL, percent REAL NOT NULL, level INTEGER NOT NULL, source TEXT NOT NULL,
    used INTEGER NOT NULL, total INTEGER NOT NULL, footprints INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS samples_at ON samples (at);
CREATE TABLE IF NOT EXISTS events (at REAL NOT NULL, kind TEXT NOT NULL, json TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_at ON events (at);
CREATE TABLE IF NOT EXISTS runs (
    started REAL NOT NULL, pid INTEGER NOT NULL, pid_started REAL NOT NULL, version TEXT NOT NULL,
    seen REAL NOT NULL, percent REAL, ended REAL, how TEXT, UNIQUE (started, pid)
);
CREATE TABLE IF NOT EXISTS peaks (model TEXT PRIMARY KEY, bytes INTEGER NOT NULL, at REAL NOT NULL);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_VERSION};
COMMIT;
"""
# Came later than the first files of this version, which get it when they are opened.
_TOKENS = """
CREATE TABLE IF NOT EXISTS tokens (
    day TEXT NOT NULL, model TEXT NOT NULL, key TEXT NOT NULL, requests INTEGER NOT NULL,
    prompt INTEGER NOT NULL, reused INTEGER NOT NULL, completion INTEGER NOT NULL, PRIMARY KEY (day, model, key)
)
"""


def connect(path: Path) -> sqlite3.Connection:
    """A connection that writes; the file, readable by its owner only, is made when it is not there.

    Raises ``OSError`` and ``sqlite3.DatabaseError``, the latter also for a database that is not a black box.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite gives its -wal and -shm files the mode of this one.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)
    connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
    try:
        _prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    found = (_pragma(connection, "application_id"), _pragma(connection, "user_version"))
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if found != (_APPLICATION_ID, _VERSION) and (tables or found != (0, 0)):
        raise sqlite3.DatabaseError("it is the database of another program or another version")
    connection.execute("PRAGMA journal_mode = WAL")
    # Survives the death of the process; a power cut may take the last seconds.
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA journal_size_limit = 4194304")
    if not tables:
        connection.executescript(_SCHEMA)
    connection.execute(_TOKENS)


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def connect_read_only(path: Path) -> sqlite3.Connection:
    """A connection that can't change anything. Raises ``sqlite3.Error``."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_S, isolation_level=None)


def is_broken(error: Exception) -> bool:
    """Whether the file's content is at fault, so that only a new file helps."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _BROKEN


def move_aside(path: Path) -> Path:
    """Give a broken file the name ``*.broken``, in place of an older one. Raises ``OSError``."""
    aside = path.with_name(path.name + ".broken")
    path.replace(aside)
    # They belong to the file that was moved: beside a new one they would break it too.
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).unlink()
    return aside


def log_file(setting: str | None) -> Path | None:
    """``logging.file``; null: ``~/Library/Logs/plimsoll/plimsoll.log`` on macOS, the XDG state folder on Linux."""
    return _place(setting, platformdirs.user_log_path("plimsoll", appauthor=False) / "plimsoll.log")


def blackbox_file(setting: str | None) -> Path | None:
    """``logging.blackbox``; null: ``blackbox.sqlite`` in the platform's state folder."""
    return _place(setting, platformdirs.user_state_path("plimsoll", appauthor=False) / "blackbox.sqlite")


def _place(setting: str | None, default: Path) -> Path | None:
    if setting is None:
        return default
    return None if setting.lower() == "none" else Path(setting).expanduser()
