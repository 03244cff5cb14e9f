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

    A thread writes them to stderr and, if given, to ``file``: an actor never waits for a full pipe or a slow disk.
    With ``stream`` the caller writes them itself, to ``stream`` instead of stderr.
    """
    # Nothing that _FORMAT leaves out is looked up: without this a record costs four times as much.
    logging._srcfile = None  # noqa: SLF001 - as the documentation of logging says
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
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
    """An opener for ``open``: only the owner may read the file, also where it was there before."""
    descriptor = os.open(path, flags, 0o600)
    # A device such as /dev/null keeps its rights, and a file of another user can still be written.
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        with contextlib.suppress(OSError):
            os.fchmod(descriptor, 0o600)
    return descriptor


class _OneLine(logging.Formatter):
    """Keeps a record's message on one line, so that no value from outside can forge a log line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = record.message.replace("\r", "\\r").replace("\n", "\\n")
        return super().formatMessage(record)


class _InBackground(logging.handlers.QueueHandler):
    """Hands records to a thread that writes them; while 10,000 wait, more are counted and left out.

    The standard library's ``QueueListener`` would wait for the writing thread without a bound when it stops.
    """

    queue: "queue.SimpleQueue[logging.LogRecord | None]"

    def __init__(self, handlers: list[logging.Handler]) -> None:
        super().__init__(queue.SimpleQueue())
        self._handlers = handlers
        self._lost = 0
        self._thread = threading.Thread(target=self._write_forever, name="log-writer", daemon=True)
        self._thread.start()

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Format the arguments now, for their values may change; the traceback stays apart, on lines of its own."""
        record.msg, record.args = record.getMessage(), None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        if self.queue.qsize() < _QUEUE:
            self.queue.put(record)
        else:
            self._lost += 1

    def close(self) -> None:
        """Write the waiting records, for two seconds at most: stderr may be a pipe that nobody reads."""
        super().close()
        if self._thread.is_alive():
            self.queue.put(None)
            self._thread.join(_CLOSE_S)

    def _write_forever(self) -> None:
        while record := self.queue.get():
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
    """5 files of 5 MB that only the owner may read; made with the first record, and anew when somebody removed them."""

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
