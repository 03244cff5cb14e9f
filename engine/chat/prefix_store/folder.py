"""The folder that a model's pieces are in: looked through, read and written by one thread that touches no MLX array."""

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plimsoll.engine.chat.prefix_store.files import (
    BLOCK,
    PART,
    STATE,
    BrokenPiece,
    Head,
    Piece,
    read_head,
    read_piece,
    write_piece,
)
from plimsoll.engine.chat.prefix_store.tree import Block, Snapshot, block_name

# The disk keeps this much for its owner.
_FREE_BYTES = 1 << 30
# A part that old belongs to a worker that was killed in mid-write.
_STALE_S = 600.0
# Headers that are looked at when a model is loaded, the newest first, and for how long.
_MOST_FILES = 50_000
_MOST_SCAN_S = 5.0


@dataclass(frozen=True, slots=True)
class Order:
    """A piece to be written, under the name it had when that was decided; ``held`` keeps its memory alive."""

    piece: Block | Snapshot
    path: Path
    head: Head
    arrays: list[Any]
    held: list[Any]
    size: int


class Folder:
    """All but ``path`` and ``give_up`` is the thread's; ``path`` is None until the model's folder is known."""

    def __init__(self, root: Path, name: Callable[[threading.Event], str], limit_bytes: int) -> None:
        """``name`` may take long; all folders under ``root`` share the limit."""
        self.path: Path | None = None
        self._root = root
        self._name_of = name
        self._limit = limit_bytes
        self._stop = threading.Event()
        self._used = 0  # bytes of all files under the root

    def give_up(self) -> None:
        """Nobody waits for what is going on."""
        self._stop.set()

    def open(self, *, quick: bool) -> None:
        """Find its name and make it; where that is not ``quick``, in the time that others leave."""
        folder = self._root / (self._name() if quick else _behind_others(self._name))
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = folder

    def _name(self) -> str:
        return self._name_of(self._stop)

    def look_through(self) -> list[tuple[Head, Path, int]]:
        """Header, path and size of every piece; what is no piece is deleted."""
        if self.path is None:
            return []
        until = time.monotonic() + _MOST_SCAN_S
        for path, stat in self._files((PART,)):
            if time.time() - stat.st_mtime > _STALE_S:
                path.unlink(missing_ok=True)
        self._make_room(0, set())
        found = []
        with os.scandir(self.path) as entries:
            stats = [(entry.stat(follow_symlinks=False).st_mtime, entry.path) for entry in entries]
        for _, name in sorted(stats, reverse=True)[:_MOST_FILES]:
            path = Path(name)
            if path.suffix in (BLOCK, STATE) and (head := _head(path)):
                found.append((head[0], path, head[1]))
            if time.monotonic() > until or self._stop.is_set():
                break
        return found

    def read(self, paths: list[Path]) -> list[Piece | None]:
        """As far as they are whole; None ends the list where one is not."""
        pieces: list[Piece | None] = []
        for path in paths:
            try:
                pieces.append(read_piece(path))
            except (BrokenPiece, OSError, ValueError) as error:
                sys.stderr.write(f"plimsoll worker: {path.name}, a stored part of a conversation, is broken: {error}\n")
                pieces.append(None)
                break
        return pieces

    def write(self, orders: list[Order], obsolete: list[Path], touched: list[Path]) -> tuple[list[Path], list[Path]]:
        """The paths that were written, and those that were deleted for it."""
        written: list[Path] = []
        deleted = list(obsolete)
        try:
            for order in orders:
                room, gone = self._make_room(order.size, {*written, *touched})
                deleted += gone
                if not room:
                    break
                self._used += write_piece(order.path, order.head, order.arrays)
                written.append(order.path)
        except OSError as error:
            sys.stderr.write(f"plimsoll worker: conversations can't be kept on disk: {error}\n")
        delete(obsolete)
        for path in (*reversed(written), *touched):
            with contextlib.suppress(OSError):
                os.utime(path)
        return written, deleted

    def _make_room(self, size: int, kept: set[Path]) -> tuple[bool, list[Path]]:
        """Delete the least recently used files of all models until ``size`` more bytes are within the limit."""
        gone: list[Path] = []
        if self.path and shutil.disk_usage(self.path).free < size + _FREE_BYTES:
            return False, gone
        if size and self._used + size <= self._limit:
            return True, gone
        files = sorted(self._files((BLOCK, STATE)), key=lambda one: one[1].st_mtime_ns)
        self._used = sum(stat.st_size for _, stat in files)
        for path, stat in files:
            if self._used + size <= self._limit:
                break
            if path in kept:
                continue
            delete([path])
            gone.append(path)
            self._used -= stat.st_size
        return self._used + size <= self._limit, gone

    def _files(self, suffixes: tuple[str, ...]) -> Iterable[tuple[Path, os.stat_result]]:
        for path in self._root.glob("*/*"):
            if path.suffix in suffixes:
                with contextlib.suppress(OSError):
                    yield path, path.lstat()


def _head(path: Path) -> tuple[Head, int] | None:
    """None for a file that is no piece under its own name, which is deleted."""
    try:
        head, size = read_head(path)
        if block_name(head.parent, head.tokens) == path.stem:
            return head, size
    except (BrokenPiece, OSError, ValueError, OverflowError):
        pass
    delete([path])
    return None


def _behind_others(work: Callable[[], str]) -> str:
    """Its result, computed by a thread that takes only what time others leave (on Linux; a process elsewhere)."""

    def run() -> str:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        return work()

    with ThreadPoolExecutor(1, "weights-hash") as thread:
        return thread.submit(run).result()


def delete(paths: Iterable[Path]) -> None:
    """What can't be deleted is said and forgotten."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            sys.stderr.write(f"plimsoll worker: a stored part of a conversation can't be deleted: {error}\n")
