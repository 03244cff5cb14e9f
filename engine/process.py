"""The front's handle on a worker process: start it, send it commands, hear its events and its end."""

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from plimsoll.engine.protocol import Command, Event, ProtocolError, encode, read_events

# A worker that has closed its socket is exiting; one that hangs on the way out is not waited for.
_EXIT_AFTER_CLOSE_S = 15.0

OnEvent = Callable[[Event], object]
OnExit = Callable[[int, bool], object]
"""Called with the exit code and whether the system's OOM killer was at work meanwhile."""


class Worker(Protocol):
    """What a ModelActor needs of its worker process, or of a group of them. Nothing here blocks."""

    @property
    def pid(self) -> int:
        """The process that stands for it."""

    @property
    def more_pids(self) -> tuple[int, ...]:
        """The other processes of a group on this machine."""

    def send(self, command: Command) -> None:
        """Hand over a command; silently dropped when the worker is gone, for its exit is told anyway."""

    def terminate(self) -> None:
        """SIGTERM to the worker and what it started."""

    def kill(self) -> None:
        """SIGKILL to the worker and what it started."""

    def hand_over(self, on_event: OnEvent, on_exit: OnExit) -> None:
        """Tell another from now on. An exit may be told twice around this moment, never not at all."""


SpawnWorker = Callable[[OnEvent, OnExit], Worker]


def worker_command(python: str, link: str) -> list[str]:
    """What starts a worker on ``link``: a descriptor, or ``stdio``."""
    # -P: a file in the current folder must not shadow a module of the worker
    return [python, "-P", "-m", "plimsoll.engine.worker", link]


class WorkerProcess:
    """A child process with one socket.

    Two threads serve it: a reader (events, then the exit code, each exactly once and in this order) and a writer,
    so that a worker that has stopped reading can't block the actor that talks to it.
    """

    def __init__(
        self,
        on_event: OnEvent,
        on_exit: OnExit,
        environment: Mapping[str, str] | None = None,
        count_oom_kills: Callable[[], int] = lambda: 0,
        *,
        warm: bool = False,
        remote: Sequence[str] | None = None,
    ) -> None:
        """Start the worker; a ``warm`` one imports the MLX engine at once. Raises ``OSError`` where it can't start.

        ``remote`` is a command that starts one elsewhere and is its standard input and output.
        """
        self._on_event = on_event
        self._on_exit = on_exit
        self._exit: tuple[int, bool] | None = None
        self._count_oom_kills = count_oom_kills
        self._oom_kills_before = count_oom_kills()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - our own module, no shell
                    remote or [*worker_command(sys.executable, str(theirs.fileno())), *(["warm"] if warm else [])],
                    pass_fds=() if remote else (theirs.fileno(),),
                    stdin=theirs.fileno() if remote else subprocess.DEVNULL,
                    stdout=theirs.fileno() if remote else None,
                    env={**os.environ, **(environment or {})},
                    # A group of its own: Ctrl-C in the terminal is for the front, which then stops its workers.
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        self.pid = self._process.pid
        self.more_pids: tuple[int, ...] = ()
        self._socket = ours
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, name=f"read-{self.pid}", daemon=True).start()
        threading.Thread(target=self._write, name=f"write-{self.pid}", daemon=True).start()

    def send(self, command: Command) -> None:
        self._outbox.put(encode(command))

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def hand_over(self, on_event: OnEvent, on_exit: OnExit) -> None:
        self._on_event, self._on_exit = on_event, on_exit
        # The reader notes the exit before it looks whom to tell: one of the two sees the other.
        if self._exit:
            on_exit(*self._exit)

    def _signal(self, number: signal.Signals) -> None:
        # Until it is reaped the pid can't be another's; poll() would reap and race with the reader's wait().
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def _read(self) -> None:
        try:
            for event in read_events(self._socket):
                self._on_event(event)
        except (ProtocolError, OSError):
            # Garbage on the socket: the worker can't be trusted with the next request.
            self.kill()
        finally:
            code = self._reap()
            self._outbox.put(None)
            self._exit = code, self._oom_killed(code)
            self._on_exit(*self._exit)

    def _reap(self) -> int:
        try:
            return self._process.wait(_EXIT_AFTER_CLOSE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()

    def _oom_killed(self, code: int) -> bool:
        return code == -signal.SIGKILL and self._count_oom_kills() > self._oom_kills_before

    def _write(self) -> None:
        with self._socket:
            while (frame := self._outbox.get()) is not None:
                try:
                    self._socket.sendall(frame)
                except OSError:
                    return
