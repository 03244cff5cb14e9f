"""The watch over the Supervisor, and the messages to systemd (sd_notify: datagrams to ``$NOTIFY_SOCKET``)."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import MutableMapping

import psutil

from plimsoll.actors.messages import GetStatus
from plimsoll.actors.status import Status
from plimsoll.errors import PlimsollError
from plimsoll.http.app_state import AppState
from plimsoll.http.operations.health import read_status
from plimsoll.inbox import ask
from plimsoll.memory.memory_errors import GIB
from plimsoll.memory.sample import Sample
from plimsoll.memory.sources import SystemSampler

_log = logging.getLogger("plimsoll.http")

_STATUS_EVERY_S = 5.0
# Two pings may be late or lost before systemd's watchdog restarts the server.
_PINGS_PER_TIMEOUT = 3


class Notifier:
    """Sends to systemd; without an address every method does nothing.

    ``watchdog_s`` is how long systemd waits for a ping before it restarts the server; None: it does not.
    """

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        self.watchdog_s = watchdog_s
        self._address = ("\0" + address[1:]) if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | getattr(socket, "SOCK_CLOEXEC", 0))
            # The event loop must not wait; systemd's queue holds hundreds of datagrams.
            self._socket.setblocking(False)

    @property
    def listens(self) -> bool:
        """Whether systemd listens."""
        return self._socket is not None

    def send(self, *lines: str) -> None:
        """Send one datagram. A failure is logged; the server goes on without it."""
        if self._socket is None:
            return
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            _log.warning("the service manager could not be told %s: %s", lines[0], error.strerror)

    def ready(self) -> None:
        """The server serves, or a reload has ended."""
        self.send("READY=1")

    def reloading(self) -> None:
        """A reload begins; ``ready`` has to follow."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The server stops."""
        self.send("STOPPING=1", "STATUS=stopping: running answers finish")

    def close(self) -> None:
        if self._socket:
            self._socket.close()
            self._socket = None


def notifier_from_environment(environment: MutableMapping[str, str] = os.environ) -> Notifier:
    """The notifier that systemd's variables ask for. They are removed, so that workers do not follow them."""
    address, usec, pid = (environment.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"))
    ours = usec.isdigit() and int(usec) > 0 and pid in ("", str(os.getpid()))
    return Notifier(address, int(usec) / 1e6 if ours else None)


async def notify_forever(state: AppState, notifier: Notifier) -> None:
    """Send the level and the figures of memory for ever, and pings for systemd's watchdog.

    A ping is sent only while the event loop runs and the Supervisor answers, so a server that hangs is restarted.
    """
    every_s = _STATUS_EVERY_S
    if notifier.watchdog_s is not None:
        every_s = min(every_s, notifier.watchdog_s / _PINGS_PER_TIMEOUT)
    while True:
        status = await read_status(state)
        lines = [] if state.stopping else [f"STATUS={status_line(status)}"]
        if notifier.watchdog_s is not None and isinstance(status, Status):
            lines.append("WATCHDOG=1")
        if lines:
            notifier.send(*lines)
        await asyncio.sleep(every_s)


def status_line(status: Status | str) -> str:
    """The line that ``systemctl status`` shows."""
    if isinstance(status, str):
        return status
    loaded = sum(one.pid is not None for one in status.models)
    models = f"{loaded} model{'' if loaded == 1 else 's'} loaded"
    if status.sample is None:
        return f"{status.level.name.lower()}, memory not read yet, {models}"
    binding = status.sample.binding
    figures = f"memory {binding.percent:.1f}% of {binding.total / GIB:.1f} GB ({binding.source})"
    return f"{status.level.name.lower()}, {figures}, {models}"


LOOK_S = 1.0
_ANSWER_S = 5.0
# A minute of silence, counted in questions and not in seconds: while a machine sleeps nothing is asked.
_QUESTIONS = 12


async def wait_until_failed(state: AppState, look_s: float, answer_s: float = _ANSWER_S) -> str:
    """Return once the Supervisor can't serve any more, with a sentence that says why.

    The Supervisor is asked every ``look_s`` seconds and has ``answer_s`` seconds to answer. Its sample of memory
    becomes ``state.sample``.
    """
    unanswered = 0
    sampler: SystemSampler | None = None
    while True:
        await asyncio.sleep(look_s)
        if not state.supervisor.is_alive():
            return "the supervisor has died"
        try:
            status = await ask(state.supervisor, GetStatus, answer_s)
        except TimeoutError:
            unanswered += 1
        except PlimsollError:
            continue  # it answers, if only with a failure; if it has died the next check shows that
        else:
            unanswered = 0
            if isinstance(status, Status):
                if status.nodes is None:
                    state.sample = status.sample
                else:
                    # The head of a cluster tells the sample of its fullest node, not that of this machine.
                    sampler = sampler or SystemSampler()
                    state.sample = await _sample_here(sampler)
        if unanswered >= _QUESTIONS:
            return f"the supervisor has not answered for {_QUESTIONS * answer_s:.0f} s"


async def _sample_here(sampler: SystemSampler) -> Sample | None:
    """A sample of this machine; None where its memory can't be read."""
    try:
        return await asyncio.to_thread(sampler)
    except (OSError, psutil.Error):
        return None  # then bodies get the least room
