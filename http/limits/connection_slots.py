"""How many connections may be open: slots for all, a reserve for probes and administration; idle ones are closed first.

Everything here runs on the event loop. Only its first request shows what a connection is used for. So the reserve takes
any connection, and a request that the reserve is not for is refused unless a slot is free or can be freed.
"""

from collections.abc import Callable
from typing import Protocol

from plimsoll.http.access.permissions import is_loopback

# Connections beyond limits.connections.
RESERVE = 32
# A connection that has been idle for less than this may have sent a request that was not read yet.
_SETTLED_S = 1.0
# At most so many idle connections are looked at to free one slot.
_MOST_LOOKS = 64
_PROBES = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})


class SlotHolder(Protocol):
    """What the slots use of a ``Connection``."""

    def is_idle(self) -> bool:
        """Whether every request that came whole on it has been answered."""

    def close_for_another(self) -> None:
        """Close it, because another connection gets its slot."""


def may_use_reserve(path: str, address: str) -> bool:
    """Whether a request to ``path`` from a client at ``address`` may use the reserve."""
    address = address.removeprefix("::ffff:")  # an IPv4 client of a socket for IPv4 and IPv6
    return path in _PROBES or ((path == "/" or path.startswith(("/admin/", "/static/"))) and is_loopback(address))


class ConnectionSlots:
    """``most`` slots. ``turned_away`` counts connections that found none, ``closed_idle`` those closed for others."""

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        self.most = most
        self.turned_away = self.closed_idle = 0
        self._clock = clock
        self._open: set[SlotHolder] = set()
        self._reserve: set[SlotHolder] = set()
        # Since when each idle connection is idle, the longest first.
        self._idle: dict[SlotHolder, float] = {}

    @property
    def taken(self) -> int:
        """Open connections, those in the reserve included."""
        return len(self._open)

    def enter(self, connection: SlotHolder) -> bool:
        """Whether a new connection may stay. It counts as idle until its first request comes."""
        if not self._free() and len(self._reserve) >= RESERVE and not (self._close_idle() or self._clear_reserve()):
            self.turned_away += 1
            return False
        if not self._free():
            self._reserve.add(connection)
        self._open.add(connection)
        self._idle[connection] = self._clock()
        return True

    def leave(self, connection: SlotHolder) -> None:
        """``connection`` is closed, or about to be."""
        self._open.discard(connection)
        self._reserve.discard(connection)
        self._idle.pop(connection, None)

    def heard(self, connection: SlotHolder) -> None:
        """The first bytes of a request came: the connection stays for a second at least, so that the rest can come."""
        if connection in self._idle:
            self.rest(connection)

    def busy(self, connection: SlotHolder) -> None:
        """A request came whole on ``connection``."""
        self._idle.pop(connection, None)

    def rest(self, connection: SlotHolder) -> None:
        """The request was handled: ``connection`` is idle from now on."""
        if connection in self._open:
            self._idle.pop(connection, None)
            self._idle[connection] = self._clock()

    def is_in_reserve(self, connection: SlotHolder) -> bool:
        """Whether this connection found no slot, so that ``may_request`` has to be asked."""
        return connection in self._reserve

    def may_request(self, connection: SlotHolder, path: str, address: str) -> bool:
        """Whether a request on this connection is served: always outside of the reserve."""
        if connection not in self._reserve or may_use_reserve(path, address):
            return True
        if not self._free() and not self._close_idle():
            return False
        self._reserve.discard(connection)
        return True

    def next_free_s(self) -> float | None:
        """In how many seconds an idle connection will have been idle for long enough to be closed; None without any."""
        since_s = next((since for one, since in self._idle.items() if one not in self._reserve), None)
        return None if since_s is None else max(0.0, since_s + _SETTLED_S - self._clock())

    def _free(self) -> bool:
        return len(self._open) - len(self._reserve) < self.most

    def _close_idle(self) -> bool:
        """Free the slot of the connection outside of the reserve that has been idle for the longest."""
        before_s = self._clock() - _SETTLED_S
        for looks, (connection, since_s) in enumerate(self._idle.items()):
            if since_s > before_s or looks >= _MOST_LOOKS:
                return False
            if connection not in self._reserve and connection.is_idle():
                return self._close(connection)
        return False

    def _clear_reserve(self) -> bool:
        """Free a place in the reserve, however new its connection is: a crowd must not keep probes out for long."""
        for connection in self._idle:
            if connection in self._reserve and connection.is_idle():
                return self._close(connection)
        return False

    def _close(self, connection: SlotHolder) -> bool:
        self.leave(connection)
        self.closed_idle += 1
        connection.close_for_another()
        return True
