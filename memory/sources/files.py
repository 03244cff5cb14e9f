"""Files that the kernel writes afresh at every read."""

import functools
import os
import re
from pathlib import Path

_CHUNK_BYTES = 65_536


class OpenFile:
    """A file kept open between reads, so that a sample costs no path look-up. Opened at the first read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def read(self) -> bytes:
        """The whole text as of now. Raises ``OSError``, after one attempt to open the file again."""
        if self._fd is not None:
            try:
                return read_all(self._fd)
            except OSError:
                self.close()
        self._fd = os.open(self.path, os.O_RDONLY)
        return read_all(self._fd)

    def close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def read_all(fd: int) -> bytes:
    """Everything from the start: /proc/vmstat comes in chunks of a page, however much is asked for."""
    text = os.pread(fd, _CHUNK_BYTES, 0)
    while chunk := os.pread(fd, _CHUNK_BYTES, len(text)):
        text += chunk
    return text


def number(text: bytes, name: str) -> int | None:
    """The unsigned number after ``name`` at the start of a line (``name 12``, ``name: 12 kB``), None without one."""
    found = _line(name).search(text)
    return int(found[1]) if found else None


def required(text: bytes, name: str) -> int:
    """``number``, but a missing one raises ``ValueError``."""
    value = number(text, name)
    if value is None:
        raise ValueError(f"no number for {name}")
    return value


@functools.cache
def _line(name: str) -> re.Pattern[bytes]:
    return re.compile(rb"^%s:?[ \t]+(\d+)(?:\s|$)" % re.escape(name.encode()), re.MULTILINE)
