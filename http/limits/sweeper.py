"""Looks at all connections once a second and ends those whose client takes too long."""

import asyncio
import logging
import time
from typing import Any, Protocol

from plimsoll.config import LimitsConfig
from plimsoll.http.front import App
from plimsoll.http.limits.patience import Look, Phase, Watch, is_stuck, overdue, watch

_log = logging.getLogger("plimsoll.http")
_EVERY_S = 1.0
_SAY_EVERY_S = 10.0


class Watched(Protocol):
    """``Connection`` as it is seen here."""

    watch: Watch | None

    def look(self) -> Look | None:
        """None for a connection that is closing."""

    def peer(self) -> str: ...
    def refuse(self, text: str) -> None:
        """Answer 408 and close."""

    def close(self) -> None: ...
    def cut(self) -> None:
        """End it at once, with whatever runs for it."""


class Sweeper:
    """``connections`` are the open ones; ``turned_away`` counts those that found no place since it was said."""

    def __init__(self, limits: LimitsConfig) -> None:
        self.limits = limits
        self.connections: set[Any] = set()
        self.turned_away = 0
        self._said_s = 0.0
        times = (limits.header_time, limits.body_time, limits.idle, limits.slow_client)
        self._every_s = min(_EVERY_S, *(one / 4 for one in times))
        self._task: asyncio.Task[None] | None = None

    def add_to(self, app: App) -> None:
        """Begin when the app serves, end when it stops."""
        app.ctx.sweeper = self

        async def start(_app: App) -> None:
            self._task = asyncio.create_task(self._run())

        async def stop(_app: App) -> None:
            if self._task:
                self._task.cancel()

        app.register_listener(start, "before_server_start")
        app.register_listener(stop, "before_server_stop")

    @property
    def full(self) -> bool:
        return len(self.connections) >= self.limits.connections

    def sweep(self, now_s: float) -> None:
        """Look at each once."""
        for connection in list(self.connections):
            self._judge(connection, now_s)
        if self.turned_away and now_s - self._said_s >= _SAY_EVERY_S:
            text = "%d connections were turned away: %d are open (limits.connections)"
            _log.warning(text, self.turned_away, len(self.connections))
            self.turned_away, self._said_s = 0, now_s

    def _judge(self, connection: Watched, now_s: float) -> None:
        look = connection.look()
        if look is None:
            return
        connection.watch = watched = watch(connection.watch, look, now_s)
        reason = overdue(watched, self.limits, now_s)
        if reason is None:
            return
        if is_stuck(watched, self.limits, now_s):
            _log.warning("the connection of %s is cut off: %s", connection.peer(), reason)
            connection.cut()
        elif look.phase in (Phase.HEADERS, Phase.BODY):
            _log.info("the connection of %s is closed: %s", connection.peer(), reason)
            connection.refuse(reason)
        else:
            connection.close()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            self.sweep(time.monotonic())
