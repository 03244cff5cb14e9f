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

import msgspec

from plimsoll.engine.protocol import Command, EngineError, Event, LoadError, ProtocolError, encode, read_events

# A worker that has closed its socket is exiting; one that hangs on the way out is not waited for.
_EXIT_AFTER_CLOSE_S = 15.0

# The exit code of a worker that could not be started, as shells have it for a command that is not there.
NOT_STARTED = 127


class Started(msgspec.Struct, frozen=True):
    """The first of all events: there is a process, and it has a pid."""


OnEvent = Callable[[Event | Started], object]
OnExit = Callable[[int, bool], object]
"""Called with the exit code and whether the kernel's OOM killer ended the process."""


class Worker(Protocol):
    """What a ModelActor needs of its worker process, or of a group of them. Nothing here blocks."""

    @property
    def pid(self) -> int | None:
        """The worker's process, of a group the first rank's; None until it has started."""

    @property
    def more_pids(self) -> tuple[int, ...]:
        """The other processes of a group on this machine."""

    def send(self, command: Command) -> None:
        """Send a command. It is dropped when the worker has ended: ``on_exit`` reports that."""

    def terminate(self) -> None:
        """Send SIGTERM to the worker and its child processes, now or as soon as the worker has started."""

    def kill(self) -> None:
        """Send SIGKILL to the worker and its child processes, now or as soon as the worker has started."""

    def hand_over(self, on_event: OnEvent, on_exit: OnExit) -> None:
        """Replace the callbacks. During the change ``on_exit`` may be called twice, but always at least once."""


SpawnWorker = Callable[[OnEvent, OnExit], Worker]
"""Has a worker started and returns at once: whoever calls it owns the process from then on, whether it runs yet or not.

Raises ``RuntimeError`` where not even a thread can be made.
"""


def worker_command(python: str, link: str) -> list[str]:
    """What starts a worker on ``link``: a descriptor, or ``stdio``."""
    # -P: a file in the current folder must not shadow a module of the worker
    return [python, "-P", "-m", "plimsoll.engine.worker", link]


class WorkerProcess:
    """A child process with one socket, started in the background: a start takes seconds on a machine that swaps.

    Two threads serve it: one that starts it and reads (events, then the exit code, each exactly once and in this
    order) and a writer, so that a worker that has stopped reading can't block the actor that talks to it. Commands and
    signals that come before the process runs reach it when it does.
    """

    def __init__(
        self,
        on_event: OnEvent,
        on_exit: OnExit,
        environment: Mapping[str, str] | None = None,
        oom_killed_one: Callable[[], bool] = lambda: False,
        *,
        warm: bool = False,
        remote: Sequence[str] | None = None,
    ) -> None:
        """Have the worker started; a ``warm`` one imports the MLX engine at once.

        One that can't be started says so with a ``LoadError`` and exits with ``NOT_STARTED``. ``remote`` is a command
        that starts one elsewhere and is its standard input and output. ``oom_killed_one`` says, once for each kill,
        whether the kernel has just killed a process of ours for want of memory.
        """
        self._on_event = on_event
        self._on_exit = on_exit
        self._exit: tuple[int, bool] | None = None
        self._environment = environment or {}
        self._oom_killed_one = oom_killed_one
        self._warm = warm
        self._remote = remote
        self.pid: int | None = None
        self.more_pids: tuple[int, ...] = ()
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        # A signal may come while the start is under way: under this lock either the caller sees the process, or the
        # starting thread sees the signal.
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ordered: signal.Signals | None = None
        threading.Thread(target=self._run, name="worker", daemon=True).start()

    def send(self, command: Command) -> None:
        self._outbox.put(encode(command))

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def hand_over(self, on_event: OnEvent, on_exit: OnExit) -> None:
        self._on_event, self._on_exit = on_event, on_exit
        # The reader sets ``_exit`` before it reads ``_on_exit``, so one of the two threads calls the new callback.
        if self._exit:
            on_exit(*self._exit)

    def _signal(self, number: signal.Signals) -> None:
        with self._starting:
            if self._ordered != signal.SIGKILL:
                self._ordered = number
            process = self._process
        if process:
            self._send_signal(process, number)

    def _send_signal(self, process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
        # Until the process is reaped no other process can have its pid. poll() would reap it in a race with wait().
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)

    def _run(self) -> None:
        """The first thread: from the start to the exit."""
        exit_ = NOT_STARTED, False
        try:
            with self._starting:
                ordered = self._ordered
            if ordered:
                exit_ = -ordered, False
            else:
                process, link = self._start()
                exit_ = self._serve(process, link)
        except OSError as error:
            self._on_event(LoadError("load", f"no worker process can be started: {error}"))
        finally:
            self._exit = exit_
            self._on_exit(*exit_)

    def _start(self) -> tuple["subprocess.Popen[bytes]", socket.socket]:
        """The process and the front's end of its socket. Raises ``OSError`` where there can be none."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = worker_command(sys.executable, str(theirs.fileno()))
            try:
                process = subprocess.Popen(  # noqa: S603 - our own module, no shell
                    self._remote or [*command, *(["warm"] if self._warm else [])],
                    pass_fds=() if self._remote else (theirs.fileno(),),
                    stdin=theirs.fileno() if self._remote else subprocess.DEVNULL,
                    stdout=theirs.fileno() if self._remote else None,
                    env={**os.environ, **self._environment},
                    # A group of its own: Ctrl-C in the terminal is for the front, which then stops its workers.
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        return process, ours

    def _serve(self, process: "subprocess.Popen[bytes]", link: socket.socket) -> tuple[int, bool]:
        """From the first event to the last; the exit code, and whether the kernel's OOM killer was at work."""
        self.pid = process.pid
        with self._starting:
            self._process = process
            ordered = self._ordered
        if ordered:
            self._send_signal(process, ordered)
        try:
            threading.Thread(target=self._write, args=(link,), name=f"write-{process.pid}", daemon=True).start()
            self._on_event(Started())
            for event in read_events(link):
                self._on_event(event)
        except ProtocolError as error:
            # The worker can't be trusted with the next request.
            self._on_event(EngineError("engine", f"the worker sent what is no message of its protocol ({error})"))
            self.kill()
        except (OSError, RuntimeError):  # the socket broke; or there is no thread left to write to it
            self.kill()
        finally:
            code = self._reap(process)
            self._outbox.put(None)
        killed_here = self._ordered == signal.SIGKILL
        return code, code == -signal.SIGKILL and not killed_here and self._oom_killed_one()

    def _reap(self, process: "subprocess.Popen[bytes]") -> int:
        try:
            return process.wait(_EXIT_AFTER_CLOSE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return process.wait()

    def _write(self, link: socket.socket) -> None:
        with link:
            while (frame := self._outbox.get()) is not None:
                try:
                    link.sendall(frame)
                except OSError:
                    return
