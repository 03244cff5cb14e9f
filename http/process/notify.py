"""Telling systemd how we are: sd_notify's protocol, lines in a datagram to ``$NOTIFY_SOCKET``."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import MutableMapping

from plimsoll.actors.messages import Status
from plimsoll.http.front import Front
from plimsoll.http.operations.health import read_status
from plimsoll.memory.report import GIB

_log = logging.getLogger("plimsoll.http")

_STATUS_EVERY_S = 5.0
# Two pings may be late or lost before the watchdog bites.
_PINGS_PER_TIMEOUT = 3


class Notifier:
    """The sending end; without an address every method does nothing. ``watchdog_s`` is the time between two pings."""

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        self.watchdog_s = watchdog_s
        self._address = ("\0" + address[1:]) if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | getattr(socket, "SOCK_CLOEXEC", 0))
            # The loop waits for nobody; systemd's queue holds hundreds.
            self._socket.setblocking(False)

    @property
    def listens(self) -> bool:
        """Whether there is anybody to tell."""
        return self._socket is not None

    def send(self, *lines: str) -> None:
        """One datagram. A failure is logged: the server does not depend on being heard."""
        if self._socket is None:
            return
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            _log.warning("the service manager could not be told %s: %s", lines[0], error.strerror)

    def ready(self) -> None:
        """It serves, or has ended a reload."""
        self.send("READY=1")

    def reloading(self) -> None:
        """A reload begins; ``ready`` has to follow."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """It stops."""
        self.send("STOPPING=1", "STATUS=stopping: running answers finish")

    def close(self) -> None:
        if self._socket:
            self._socket.close()
            self._socket = None


def of_environment(environment: MutableMapping[str, str] = os.environ) -> Notifier:
    """As systemd asks for it; its variables are taken out, so that no worker believes they are for it."""
    address, usec, pid = (environment.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"))
    ours = usec.isdigit() and int(usec) > 0 and pid in ("", str(os.getpid()))
    return Notifier(address, int(usec) / 1e6 if ours else None)


async def keep_told(front: Front, notifier: Notifier) -> None:
    """For ever: the level and the figures, and a ping for the watchdog.

    This loop has to run and the Supervisor to answer for a ping: a server that hangs is restarted.
    """
    every_s = _STATUS_EVERY_S
    if notifier.watchdog_s is not None:
        every_s = min(every_s, notifier.watchdog_s / _PINGS_PER_TIMEOUT)
    while True:
        status = await read_status(front)
        lines = [] if front.stopping else [f"STATUS={status_line(status)}"]
        if notifier.watchdog_s is not None and isinstance(status, Status):
            lines.append("WATCHDOG=1")
        if lines:
            notifier.send(*lines)
        await asyncio.sleep(every_s)


def status_line(status: Status | str) -> str:
    """What ``systemctl status`` shows."""
    if isinstance(status, str):
        return status
    loaded = sum(one.pid is not None for one in status.models)
    models = f"{loaded} model{'' if loaded == 1 else 's'} loaded"
    if status.sample is None:
        return f"{status.level.name.lower()}, memory not read yet, {models}"
    binding = status.sample.binding
    figures = f"memory {binding.percent:.1f}% of {binding.total / GIB:.1f} GB ({binding.source})"
    return f"{status.level.name.lower()}, {figures}, {models}"
