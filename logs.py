"""Logging, set up in one place: one line per record with its time, on stderr and in a file that rotates."""

import contextlib
import logging
import logging.handlers
import os
import queue
import stat
import sys
import threading
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_FILE_BYTES = 5_000_000
_FILES = 5
_QUEUE = 10_000
_CLOSE_S = 2.0

_log = logging.getLogger("plimsoll.logs")


def configure(level: str, stream: TextIO | None = None, file: Path | None = None) -> None:
    """Plimsoll's records from ``level`` (debug, info, warning or error) on, those of libraries from warning on.

    They go to stderr and, if given, to ``file``, through a thread: an actor never waits for a full pipe or a slow
    disk. With ``stream`` they go there instead of stderr, and all are written at once by the caller.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(stream or sys.stderr)]
    if file:
        handlers.append(_File(file))
    for handler in handlers:
        handler.setFormatter(_OneLine(_FORMAT))
    if stream is None:
        handlers = [_InBackground(handlers)]
    logging.basicConfig(level=logging.WARNING, handlers=handlers, force=True)
    set_level(level)
    for name in ("sanic.root", "sanic.server", "sanic.error", "sanic.access", "sanic.websockets"):
        logging.getLogger(name).setLevel(logging.WARNING)


def set_level(level: str) -> None:
    """Plimsoll's records from ``level`` (debug, info, warning or error) on."""
    logging.getLogger("plimsoll").setLevel(level.upper())


def _private(path: str, flags: int) -> int:
    """For ``open``: the file is its owner's alone, also one that was there before."""
    descriptor = os.open(path, flags, 0o600)
    # Not /dev/null, which would be everybody's no more; and a file of another user is still good for lines.
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        with contextlib.suppress(OSError):
            os.fchmod(descriptor, 0o600)
    return descriptor


class _OneLine(logging.Formatter):
    """A record's own text can't begin a new line, so that no value from outside can forge one."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = record.message.replace("\r", "\\r").replace("\n", "\\n")
        return super().formatMessage(record)


class _InBackground(logging.Handler):
    """Hands records to a thread that writes them; when 10,000 wait, more are counted and left out."""

    def __init__(self, handlers: list[logging.Handler]) -> None:
        super().__init__()
        self._handlers = handlers
        self._queue: queue.Queue[logging.LogRecord | None] = queue.Queue(_QUEUE)
        self._lost = 0
        self._thread = threading.Thread(target=self._write_forever, name="log-writer", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            # Now: what the arguments say may be another thing a moment later.
            record.msg, record.args = record.getMessage(), None
            self._queue.put_nowait(record)
        except queue.Full:
            self._lost += 1
        except Exception:  # noqa: BLE001 - as every handler
            self.handleError(record)

    def close(self) -> None:
        """Write what waits, for up to two seconds: stderr may be a pipe that nobody reads."""
        super().close()
        if self._thread.is_alive():
            try:
                self._queue.put(None, timeout=_CLOSE_S)
            except queue.Full:
                return
            self._thread.join(_CLOSE_S)

    def _write_forever(self) -> None:
        while record := self._queue.get():
            if self._lost:
                lost, self._lost = self._lost, 0
                self._write(_log.makeRecord(_log.name, logging.WARNING, "", 0, f"{lost} records were lost", (), None))
            self._write(record)
        for handler in self._handlers:
            handler.close()

    def _write(self, record: logging.LogRecord) -> None:
        for handler in self._handlers:
            handler.handle(record)


class _File(logging.handlers.RotatingFileHandler):
    """5 files of 5 MB, for the owner's eyes only; made with the first record, and again when they are gone."""

    def __init__(self, path: Path) -> None:
        # delay: a process that logs nothing leaves no file.
        super().__init__(
            path, maxBytes=_FILE_BYTES, backupCount=_FILES - 1, encoding="utf-8", errors="backslashreplace", delay=True
        )
        self._failing = False
        self._reason: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        failing, self._failing = self._failing, False
        if self.stream and not self._is_current(self.stream):
            self.stream.close()
            self.stream = None
        super().emit(record)
        if self._failing and not failing:
            _log.warning(
                "the log file %s can't be written (%s); the log goes on without it", self.baseFilename, self._reason
            )

    def close(self) -> None:
        # On a full disk closing fails too.
        with contextlib.suppress(OSError):
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - logging's name
        self._failing = True
        self._reason = sys.exception()

    def _open(self) -> TextIOWrapper:
        path = Path(self.baseFilename)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Path.open() takes no opener.
        return open(path, self.mode, encoding=self.encoding, errors=self.errors, opener=_private)  # type: ignore[return-value]

    def _is_current(self, stream: TextIOWrapper) -> bool:
        try:
            return os.path.samestat(os.fstat(stream.fileno()), Path(self.baseFilename).stat())
        except OSError:
            return False
