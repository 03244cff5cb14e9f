"""One node: the actor system of its machine, and the way of commands in and of items out.

Ray makes one of these an actor on each node. It holds all models of the machine, and its own Watchdog and ledger.
"""

import asyncio
import logging
import os
import sys
import time
from typing import Any

import msgspec
import yaml

from plimsoll import __version__, config, logs
from plimsoll.actors import messages as m
from plimsoll.actors.system import ActorSystem
from plimsoll.catalog import Catalog
from plimsoll.cluster import ray_monitor, wire
from plimsoll.cluster.node_commands import Outlet, message_of
from plimsoll.config import Config, ModelsConfig
from plimsoll.errors import InternalError, LoadFailed, PlimsollError
from plimsoll.http.stream import Inbox, ask
from plimsoll.journal.blackbox import BlackBox
from plimsoll.journal.journal import Journal
from plimsoll.journal.places import blackbox_file, log_file
from plimsoll.journal.read import peaks
from plimsoll.units import Bytes, from_yaml

_log = logging.getLogger("plimsoll.cluster")

# What comes within this time of an answer to a poll goes with the next one: a poll costs 2.5 ms of CPU on both sides
# together, and a lone stream of up to 100 tokens a second waits for nothing.
_GATHER_S = 0.01
_POLL_S = 1.0
_REPORT_S = 1.0
_LOOK_S = 0.1
_ITEMS = 8192
_ANSWER_S = 30.0


class NodeServer:
    """Lives on the loop of its Ray actor. ``start`` comes first, then any number of ``tell`` and ``poll``."""

    def __init__(self) -> None:
        self._system: ActorSystem
        self._catalog: Catalog
        self._config: Config
        self._inbox: Inbox
        self._polled_at = 0.0
        self._blackbox: BlackBox | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure = ""
        self._reporting: asyncio.Task[None]

    async def start(self, version: str, settings: str, limit_bytes: int) -> str:
        """Begin with the head's ``settings`` (YAML) and this limit; a sentence where that can't be, else ""."""
        if version != __version__:
            return f"it has Plimsoll {__version__} and the head {version}; install the same on both"
        # As the command line does: what is written is for the owner's eyes only.
        os.umask(0o077)
        self._inbox = Inbox()
        try:
            await asyncio.to_thread(self._start, settings, limit_bytes)
        except PlimsollError as error:
            return error.message
        self._reporting = self._go(self._report())
        return ""

    async def warning(self) -> str:
        """What is wrong with its machine though it can be used; else ""."""
        return ray_monitor.warning(os.environ, sys.platform)

    async def tell(self, frame: bytes) -> None:
        """Carry out commands, in order; what they are answered with comes by ``poll``."""
        for command in wire.decode_commands(frame):
            self._carry_out(command)

    async def poll(self) -> bytes:
        """Items that have come, as soon as there are some; none after a second. Raises when the node can't go on."""
        loop = asyncio.get_running_loop()
        if (early_s := self._polled_at + _GATHER_S - loop.time()) > 0:
            await asyncio.sleep(early_s)
        items = await self._inbox.next_batch(_POLL_S)
        items += self._inbox.take(_ITEMS)
        if self._failure:
            raise RuntimeError(self._failure)
        self._polled_at = loop.time()
        return wire.encode_items(items)

    def _start(self, settings: str, limit_bytes: int) -> None:
        given = config.parse(yaml.safe_load(settings))
        self._config = msgspec.structs.replace(
            given, memory=msgspec.structs.replace(given.memory, limit=Bytes(limit_bytes))
        )
        logs.configure(given.logging.level, file=log_file(given.logging.file))
        self._catalog = Catalog(given.models)
        path = blackbox_file(given.logging.blackbox)
        footprints: dict[str, int] = {}
        if path:
            self._blackbox = BlackBox(path)
            self._blackbox.start()
            footprints = peaks(path)
        journal = Journal(given.logging.language, self._blackbox)
        self._system = ActorSystem(self._config, self._catalog, journal=journal, footprints=footprints)
        self._system.start()

    # ---- in

    def _carry_out(self, command: wire.Command) -> None:
        match command:
            case wire.Weigh():
                self._go(self._weigh(command))
            case wire.Reconfigure():
                self._go(self._follow(command))
            case wire.Stop():
                self._go(self._stop(command))
            case _:
                self._tell(message_of(command, Outlet(getattr(command, "id", ""), self._inbox)))

    def _tell(self, message: m.Message) -> None:
        if not m.tell(self._system.supervisor, message):
            self._failure = "its supervisor has died"

    async def _follow(self, command: wire.Reconfigure) -> None:
        try:
            self._tell(self._reconfigure(command))
        except PlimsollError as error:
            Outlet(command.id, self._inbox).send(m.Failed(error))

    def _reconfigure(self, command: wire.Reconfigure) -> m.Reconfigure:
        self._catalog = Catalog(msgspec.convert(command.models, ModelsConfig, dec_hook=from_yaml))
        limit = self._config.memory.limit
        return m.Reconfigure(
            catalog=self._catalog,
            thresholds=command.thresholds,
            limit_bytes=None if limit is None else int(limit),
            queue=command.queue,
            critical_grace_s=command.critical_grace_s,
            drain_s=command.drain_s,
            reply=Outlet(command.id, self._inbox),
        )

    async def _weigh(self, command: wire.Weigh) -> None:
        answer: Any
        try:
            needs = await asyncio.to_thread(self._system.ways_to_load, self._catalog.find(command.model))
            answer = wire.Ways(needs)
        except (OSError, ValueError) as error:
            answer = m.Failed(LoadFailed(f"{command.model} can't be loaded: {error}", retry_after_s=5.0))
        except PlimsollError as error:
            answer = m.Failed(error)
        except Exception:  # noqa: BLE001 - whatever its files make a reader raise, who wants the model waits for this
            _log.exception("%s can't be weighed", command.model)
            answer = m.Failed(InternalError(f"{command.model} can't be weighed here; the node's log says why"))
        Outlet(command.id, self._inbox).send(answer)

    async def _stop(self, command: wire.Stop) -> None:
        # What it would report is that its Supervisor is gone.
        self._reporting.cancel()
        await asyncio.to_thread(self._system.stop, command.grace_s)
        if self._blackbox:
            self._blackbox.close("stopped")
        Outlet(command.id, self._inbox).send(None)

    # ---- out

    async def _report(self) -> None:
        """Tell how things stand once a second, and within a tenth of one when models have changed."""
        before: Any = None
        told_at, began = 0.0, time.monotonic()
        while True:
            status = await self._status()
            now = time.monotonic()
            is_news = status and (now - told_at >= _REPORT_S or _outline(status) != before)
            # Memory is read for the first time in these moments: a node that does not know it yet takes no loads.
            if status and is_news and (status.sample or now - began > _REPORT_S):
                before, told_at = _outline(status), now
                self._inbox.send(("", wire.Report(now, status)))
            await asyncio.sleep(_LOOK_S)

    async def _status(self) -> m.Status | None:
        try:
            status: m.Status = await ask(self._system.supervisor, m.GetStatus, _ANSWER_S)
        except TimeoutError:
            self._failure = f"its supervisor has not answered for {_ANSWER_S:.0f} s"
        except PlimsollError as error:
            self._failure = error.message
        else:
            return status
        return None

    def _go(self, work: Any) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _outline(status: m.Status) -> Any:
    """What makes a report worth sending at once."""
    models = [(one.name, one.state, one.active, one.queued, one.pinned) for one in status.models]
    return status.level, status.admission, models
