"""The kept responses as files of one folder, so that a server that is started again still has them.

Files are read and written on threads of ``DISK``: a disk that does not answer costs what it holds, and nobody's time.
"""

import contextlib
import fcntl
import logging
import os
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import platformdirs

from plimsoll.catalog.disk import DISK, Place

_log = logging.getLogger("plimsoll.http")
_SUFFIX, _PART, _LOCK = ".json", ".part", ".lock"


class Entry(msgspec.Struct):
    """One file: a response or a conversation, the key that made it, and its items and its body as JSON.

    ``ids`` are the items' own.
    """

    name: str
    owner: str
    items: msgspec.Raw
    body: msgspec.Raw
    ids: tuple[str, ...] = ()


_decoder = msgspec.json.Decoder(Entry)


def responses_folder(setting: str | None) -> Path | None:
    """``server.responses_folder``; null: ``responses`` in the platform's state folder. None for memory alone."""
    if setting is None:
        return platformdirs.user_state_path("plimsoll", appauthor=False) / "responses"
    return None if setting.lower() == "none" else Path(setting).expanduser()


class FolderTaken(OSError):
    """Another server keeps its responses in the folder."""


class ResponseFolder:
    """Files that only this user can read, of one server at a time: each deletes what it does not know.

    What can't be written is logged once and is lost at the server's end.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._told = False
        self._lock: int | None = None
        self._is_taken = False

    def read(self, most: int, most_bytes: int) -> "Future[list[tuple[Entry, int]]]":
        """The newest entries with their bytes, oldest first; files that are broken or too many are deleted.

        The future raises ``FolderTaken`` where another server has the folder: nothing is read or written then.
        """

        def read() -> list[tuple[Entry, int]]:
            self._take()
            return _read(self._folder, most, most_bytes)

        return DISK.ask(Place(str(self._folder), str(self._folder)), read)

    def close(self) -> None:
        """Leave the folder to the next server."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def write(self, name: str, data: bytes) -> None:
        """Have the file of that entry written in place of an older one."""
        self._do(name, lambda path: _write(path, data))

    def remove(self, name: str) -> None:
        """Have the file of that entry deleted."""
        self._do(name, lambda path: path.unlink(missing_ok=True))

    def _do(self, name: str, work: Callable[[Path], Any]) -> None:
        if self._is_taken:
            return
        path = self._folder / f"{name}{_SUFFIX}"
        # What concerns one file is done in order.
        DISK.ask(Place(str(path), str(self._folder)), partial(work, path)).add_done_callback(self._tell_trouble)

    def _take(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            self._is_taken = True
            raise FolderTaken(f"another server keeps its responses in {self._folder}") from None
        except OSError:  # a file system without locks: the folder is used as it is
            os.close(handle)
        else:
            self._lock = handle

    def _tell_trouble(self, done: "Future[Any]") -> None:
        if (error := done.exception()) and not self._told:
            self._told = True
            text = "responses are not kept on disk: %s; name another folder under server.responses_folder, or none"
            _log.warning(text, error)


def _read(folder: Path, most: int, most_bytes: int) -> list[tuple[Entry, int]]:
    found: list[tuple[Entry, int]] = []
    left = most_bytes
    for path in _newest_first(folder):
        try:
            data = path.read_bytes()
            entry = _decoder.decode(data)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            entry = None
        if entry is None or f"{entry.name}{_SUFFIX}" != path.name or len(data) > left or len(found) >= most:
            with contextlib.suppress(OSError):
                path.unlink()
            continue
        found.append((entry, len(data)))
        left -= len(data)
    found.reverse()
    return found


def _newest_first(folder: Path) -> list[Path]:
    """The files of entries; what a server that was killed left half written is deleted."""
    if not folder.is_dir():
        return []
    dated = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if path.suffix == _SUFFIX:
                dated.append((path.stat().st_mtime_ns, path))
            elif path.suffix == _PART:
                path.unlink()
    return [path for _, path in sorted(dated, reverse=True)]


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_suffix(_PART)
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
    part.replace(path)
