"""How long a connection may take. A sweeper looks at every connection once a second, so a connection costs no timer."""

import asyncio
import enum
import logging
import time
from typing import Any, Protocol

import msgspec
from sanic.exceptions import RequestTimeout

from plimsoll.config import LimitsConfig
from plimsoll.http.app_state import App
from plimsoll.http.limits.connection_slots import ConnectionSlots

# A client that takes this much within ``limits.slow_client`` is slow but alive.
_PROGRESS_BYTES = 32 * 1024
# As many items may wait for a client that has read nothing since the last sweep: minutes of an answer.
_MOST_WAITING = 4096


class Phase(enum.Enum):
    """What a connection is waiting for."""

    FRESH = "its first request"
    IDLE = "another request"
    HEADERS = "the rest of the headers"
    BODY = "the rest of the body"
    DRAIN = "the rest of a body that was refused"
    ANSWER = "its answer"


_LIMITS = {
    Phase.FRESH: "header_time",
    Phase.IDLE: "idle",
    Phase.HEADERS: "header_time",
    Phase.BODY: "body_time",
    Phase.DRAIN: "body_time",
}


class Observation(msgspec.Struct, frozen=True):
    """A connection at one moment.

    ``served`` is the number of requests that have begun on it. ``pauses`` counts how often writing was paused because
    the client did not read; ``paused`` says whether it is paused now. ``buffered`` bytes of the answer are written but
    not taken by the operating system; ``waiting`` items of the answer are not written yet.
    """

    phase: Phase
    served: int = 0
    pauses: int = 0
    paused: bool = False
    buffered: int = 0
    waiting: int = 0


class WaitTimes(msgspec.Struct, frozen=True):
    """``since_s``: since when the connection waits for the same; ``taken_s``: when its client last took anything."""

    seen: Observation
    since_s: float
    taken_s: float


def wait_times_after(before: WaitTimes | None, seen: Observation, now_s: float) -> WaitTimes:
    """The wait times after one more observation."""
    if before is None:
        return WaitTimes(seen, now_s, now_s)
    last = before.seen
    same = (seen.phase, seen.served) == (last.phase, last.served)
    stuck = seen.paused and seen.pauses == last.pauses and last.buffered - seen.buffered < _PROGRESS_BYTES
    # The old number of buffered bytes stays until 32 KiB of them were read, so that slow reading counts as progress.
    kept = msgspec.structs.replace(seen, buffered=last.buffered) if stuck else seen
    return WaitTimes(kept, before.since_s if same else now_s, before.taken_s if stuck else now_s)


def overdue(times: WaitTimes, limits: LimitsConfig, now_s: float) -> str | None:
    """Why the connection has to end; None if it may stay open."""
    if has_stopped_reading(times, limits, now_s):
        return f"its client did not read its answer ({times.seen.waiting} parts wait; limits.slow_client)"
    key = _LIMITS.get(times.seen.phase)
    if key is None or now_s - times.since_s <= getattr(limits, key):
        return None
    return f"{times.seen.phase.value} did not arrive within {getattr(limits, key):g} s (limits.{key})"


def has_stopped_reading(times: WaitTimes, limits: LimitsConfig, now_s: float) -> bool:
    """Whether the client has read nothing for ``limits.slow_client``, or too many items wait for it."""
    unread_s = now_s - times.taken_s
    return unread_s > limits.slow_client or (unread_s > 0 and times.seen.waiting > _MOST_WAITING)


_log = logging.getLogger("plimsoll.http")
_SWEEP_EVERY_S = 1.0
_LOG_EVERY_S = 10.0


class ObservedConnection(Protocol):
    """What the sweeper uses of a ``Connection``."""

    wait_times: WaitTimes | None

    def observe(self) -> Observation | None:
        """None for a connection that is closing."""

    def peer(self) -> str: ...
    def refuse(self, error: Exception) -> None:
        """Answer with ``error`` and close."""

    def close(self) -> None: ...
    def cut(self) -> None:
        """End the connection at once, and whatever runs for it."""


class ConnectionSweeper:
    """Ends the connections that take too long. ``connections`` are the open ones."""

    def __init__(self, limits: LimitsConfig, slots: ConnectionSlots) -> None:
        self.limits = limits
        self.connections: set[Any] = set()
        self._slots = slots
        self._logged_s = 0.0
        times = (limits.header_time, limits.body_time, limits.idle, limits.slow_client)
        self._every_s = min(_SWEEP_EVERY_S, *(one / 4 for one in times))
        self._task: asyncio.Task[None] | None = None

    def add_to(self, app: App) -> None:
        """Sweep from the moment ``app`` serves until it stops."""
        app.ctx.sweeper = self

        async def start(_app: App) -> None:
            self._task = asyncio.create_task(self._sweep_forever())

        async def stop(_app: App) -> None:
            if self._task:
                self._task.cancel()

        app.register_listener(start, "before_server_start")
        app.register_listener(stop, "before_server_stop")

    def sweep(self, now_s: float) -> None:
        """Check every connection once."""
        for connection in list(self.connections):
            self._check(connection, now_s)
        slots = self._slots
        if (slots.turned_away or slots.closed_idle) and now_s - self._logged_s >= _LOG_EVERY_S:
            text = "%d connections were turned away and %d idle ones closed for them: %d are open (limits.connections)"
            _log.warning(text, slots.turned_away, slots.closed_idle, slots.taken)
            slots.turned_away = slots.closed_idle = 0
            self._logged_s = now_s

    def _check(self, connection: ObservedConnection, now_s: float) -> None:
        seen = connection.observe()
        if seen is None:
            return
        connection.wait_times = times = wait_times_after(connection.wait_times, seen, now_s)
        reason = overdue(times, self.limits, now_s)
        if reason is None:
            return
        if has_stopped_reading(times, self.limits, now_s):
            _log.warning("the connection of %s is cut off: %s", connection.peer(), reason)
            connection.cut()
        elif seen.phase in (Phase.HEADERS, Phase.BODY):
            _log.info("the connection of %s is closed: %s", connection.peer(), reason)
            connection.refuse(RequestTimeout(reason))
        else:
            connection.close()

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            self.sweep(time.monotonic())
