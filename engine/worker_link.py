"""What frames go through between front process and worker: a socket, or the worker's standard input and output."""

import os
import socket
from typing import BinaryIO, Literal


class Stdio:
    """The standard input and output of this process; what a library prints goes to standard error from now on."""

    def __init__(self) -> None:
        self._input, self._output = os.dup(0), os.dup(1)
        os.dup2(2, 1)

    def makefile(self, mode: Literal["rb"], *, buffering: int) -> BinaryIO:
        """Where frames come from; it ends when the other end is gone."""
        return os.fdopen(self._input, mode, buffering)

    def sendall(self, data: bytes) -> None:
        """Send all of it. Raises ``OSError`` when the other end is gone."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._output, view) :]


Link = socket.socket | Stdio
