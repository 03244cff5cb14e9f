"""One node: the actor system of its machine, and the way of commands in and of items out.

Ray makes one of these an actor on each node. It holds all models of the machine, and its own Watchdog and ledger.
"""

import asyncio
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import yaml

from plimsoll import __version__, config, logs
from plimsoll.actors import messages as m
from plimsoll.actors.model_load import WEIGH_S
from plimsoll.actors.replies import Failed, Reply
from plimsoll.actors.resume import Resume
from plimsoll.actors.settings import Settings
from plimsoll.actors.status import Status
from plimsoll.actors.system import ActorSystem
from plimsoll.catalog.names import Catalog
from plimsoll.cluster import node_protocol
from plimsoll.config import Config, ModelsConfig
from plimsoll.errors import InternalError, LoadFailed, PlimsollError, WorkerDied
from plimsoll.inbox import Inbox, ask
from plimsoll.journal.blackbox import BlackBox
from plimsoll.journal.journal import Journal
from plimsoll.journal.read import peaks
from plimsoll.journal.store import blackbox_file, log_file
from plimsoll.units import Bytes, from_yaml, to_plain

VARIABLE = "RAY_memory_monitor_refresh_ms"


def warning(environment: Mapping[str, str], platform: str) -> str:
    """A sentence where the monitor is on, else ""; a node's process inherits what ``ray start`` was given.

    Ray has it on Linux only, on by default, off at 0.
    """
    if not platform.startswith("linux") or environment.get(VARIABLE, "").strip() == "0":
        return ""
    percent = 100 * _share(environment.get("RAY_memory_usage_threshold", ""))
    return (
        f"Ray's memory monitor is on: at {percent:.0f}% of the machine's memory it may kill the node's process, with"
        f" all its models; start Ray there with {VARIABLE}=0 ray start ..."
    )


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.95


class Outlet:
    """A ``Reply`` whose items go to the head under the id of what they answer; one without an id goes nowhere."""

    def __init__(self, one: str, inbox: Inbox) -> None:
        self._id = one
        self._inbox = inbox

    def send(self, item: Any) -> None:
        if self._id:
            self._inbox.send((self._id, item))


def elsewhere(so_far: tuple[int, ...]) -> Resume | None:
    """What an answer takes along that another node has begun; the head says how long it may wait."""
    if not so_far:
        return None
    error = WorkerDied("the node that ran this answer was lost; send the request again", retry_after_s=1.0)
    return Resume(so_far, time.monotonic(), math.inf, "their node was lost", error)


def message_of(command: node_protocol.Command, reply: Reply) -> m.Message:
    """The Supervisor's message for a command that concerns the Supervisor alone."""
    return _MESSAGES[type(command)](command, reply)


_MESSAGES: dict[type, Callable[[Any, Reply], m.Message]] = {
    node_protocol.Chat: lambda one, reply: m.Chat(
        one.id, one.model, one.request, reply, elsewhere(one.so_far), tells_tokens=True
    ),
    node_protocol.Cancel: lambda one, _: m.Cancel(one.id, one.model),
    node_protocol.KeepAlive: lambda one, _: m.KeepAlive(one.model, one.seconds),
    node_protocol.Load: lambda one, reply: m.LoadModel(one.model, reply),
    node_protocol.Unload: lambda one, reply: m.UnloadModel(one.model, reply, one.grace_s),
    node_protocol.Pin: lambda one, reply: m.PinModel(one.model, one.pinned, reply),
    node_protocol.CleanUp: lambda one, reply: m.CleanUpModels(reply, one.aggressive),
    node_protocol.LookAtMemory: lambda _, reply: m.GetStatus(reply, clean_up=True),
}


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
        # As on the command line: only the owner may read the files that the node writes.
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
        return warning(os.environ, sys.platform)

    async def tell(self, frame: bytes) -> None:
        """Carry out commands, in order; what they are answered with comes by ``poll``."""
        for command in node_protocol.decode_commands(frame):
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
        return node_protocol.encode_items(items)

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

    def _carry_out(self, command: node_protocol.Command) -> None:
        match command:
            case node_protocol.Weigh():
                self._go(self._weigh(command))
            case node_protocol.Reconfigure():
                self._go(self._follow(command))
            case node_protocol.Stop():
                self._go(self._stop(command))
            case _:
                self._tell(message_of(command, Outlet(getattr(command, "id", ""), self._inbox)))

    def _tell(self, message: m.Message) -> None:
        if not m.tell(self._system.supervisor, message):
            self._failure = "its supervisor has died"

    async def _follow(self, command: node_protocol.Reconfigure) -> None:
        try:
            self._tell(self._reconfigure(command))
        except PlimsollError as error:
            Outlet(command.id, self._inbox).send(Failed(error))

    def _reconfigure(self, command: node_protocol.Reconfigure) -> m.Reconfigure:
        models = msgspec.convert(command.models, ModelsConfig, dec_hook=from_yaml)
        self._catalog = Catalog(models, self._catalog)
        limit_bytes = Settings.of(self._config).limit_bytes
        return m.Reconfigure(
            catalog=self._catalog,
            settings=msgspec.structs.replace(command.settings, limit_bytes=limit_bytes),
            drain_s=command.drain_s,
            reply=Outlet(command.id, self._inbox),
        )

    async def _weigh(self, command: node_protocol.Weigh) -> None:
        answer: Any
        try:
            weighing = asyncio.wrap_future(self._system.weigh(self._catalog.find(command.model)))
            answer = node_protocol.Ways(await asyncio.wait_for(weighing, WEIGH_S))
        except TimeoutError:
            text = f"{command.model} can't be loaded: its files have not answered for {WEIGH_S:.0f} s"
            answer = Failed(LoadFailed(text, retry_after_s=5.0))
        except (OSError, ValueError) as error:
            answer = Failed(LoadFailed(f"{command.model} can't be loaded: {error}", retry_after_s=5.0))
        except PlimsollError as error:
            answer = Failed(error)
        except Exception:  # noqa: BLE001 - whatever its files make a reader raise, who wants the model waits for this
            _log.exception("%s can't be weighed", command.model)
            answer = Failed(InternalError(f"{command.model} can't be weighed here; the node's log says why"))
        if (status := await self._status()) and status.sample:
            self._tell_status(time.monotonic(), status)
        Outlet(command.id, self._inbox).send(answer)

    async def _stop(self, command: node_protocol.Stop) -> None:
        # The report would be that the Supervisor is gone.
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
            # The first memory sample is being taken: a node without a sample takes no loads.
            if status and is_news and (status.sample or now - began > _REPORT_S):
                before, told_at = _outline(status), now
                self._tell_status(now, status)
            await asyncio.sleep(_LOOK_S)

    def _tell_status(self, now: float, status: Status) -> None:
        self._inbox.send(("", node_protocol.Report(now, status)))

    async def _status(self) -> Status | None:
        try:
            status: Status = await ask(self._system.supervisor, m.GetStatus, _ANSWER_S)
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


def _outline(status: Status) -> Any:
    """The parts of a report whose change is sent at once."""
    models = [(one.name, one.state, one.active, one.queued, one.pinned) for one in status.models]
    return status.level, status.admission, models


def node_settings(given: Config) -> str:
    """YAML that ``config.parse`` takes."""
    access = msgspec.structs.replace(given.access, keys=[])
    return config.to_yaml(msgspec.structs.replace(given, access=access, models=_without_pins(given.models)))


def models_section(catalog: Catalog) -> dict[str, Any]:
    """The section ``models`` as plain data."""
    section: dict[str, Any] = msgspec.to_builtins(_without_pins(catalog.config), enc_hook=to_plain)
    return section


def _without_pins(models: ModelsConfig) -> ModelsConfig:
    entries = {name: msgspec.structs.replace(entry, pin=False) for name, entry in models.entries.items()}
    return msgspec.structs.replace(models, entries=entries)
