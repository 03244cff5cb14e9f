"""Reading the configuration again: SIGHUP and ``POST /admin/reload``."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

import msgspec
from sanic import HTTPResponse

from plimsoll import logs
from plimsoll.actors.messages import Reconfigure
from plimsoll.actors.replies import Reply
from plimsoll.actors.settings import Settings
from plimsoll.catalog.disk import Place
from plimsoll.catalog.names import Catalog
from plimsoll.config import Config, ModelsConfig
from plimsoll.config_file import Change
from plimsoll.errors import ConfigError, Unavailable
from plimsoll.http.access.permissions import Keys, read_keys
from plimsoll.http.app_state import App
from plimsoll.http.disk_reads import read_disk
from plimsoll.http.errors import respond
from plimsoll.http.limits.body_budget import HttpRequest
from plimsoll.inbox import ask
from plimsoll.journal import events

# Keys that a reload can apply. The others belong to sockets, open files, caches or running workers and need a restart.
_LIVE = frozenset(
    {
        *("server.max_body", "server.keepalive", "server.shutdown_grace"),
        *("access.keys", "access.hosts", "access.origins"),
        *("limits.messages", "limits.prompt", "limits.tools", "limits.headers"),
        *("limits.requests_per_minute", "limits.burst"),
        *("memory.limit", "memory.warning_percent", "memory.critical_percent", "memory.emergency_percent"),
        *("memory.hysteresis_percent", "memory.clear_after", "memory.critical_grace", "memory.patience"),
        *("models.builtin", "models.default", "models.dir", "models.dirs", "models.programs"),
        *("models.idle_ttl", "models.queue", "models.entries"),
        *("engine.preempt", "requests.keep_texts"),
        *("logging.level", "logging.language"),
    }
)


class ReloadPlan(msgspec.Struct, frozen=True):
    """``changed`` holds the paths of changed keys that apply at once, ``needs_restart`` those of all others.

    ``config`` is the configuration after the reload; keys that need a restart have their old values in it.
    """

    changed: list[str]
    needs_restart: list[str]
    config: Config


def plan_reload(running: Config, read: Config) -> ReloadPlan:
    """Compare the configuration in force with the one that was read. Model entries are compared one by one."""
    changed: list[str] = []
    needs_restart: list[str] = []
    sections = {}
    for section in Config.__struct_fields__:
        old, new = getattr(running, section), getattr(read, section)
        kept = {}
        for key in new.__struct_fields__:
            path = f"{section}.{key}"
            if getattr(old, key) == getattr(new, key):
                continue
            if path == "models.entries":
                changed += _entries(old, new)
            elif path in _LIVE:
                changed.append(path)
            else:
                needs_restart.append(path)
                kept[key] = getattr(old, key)
        sections[section] = msgspec.structs.replace(new, **kept)
    return ReloadPlan(changed, needs_restart, Config(**sections))


def _entries(old: ModelsConfig, new: ModelsConfig) -> list[str]:
    names = dict.fromkeys([*old.entries, *new.entries])
    return [f"models.entries.{name}" for name in names if old.entries.get(name) != new.entries.get(name)]


_TIMEOUT_S = 10.0
_FILES = Place("the configuration, or a file of keys", "the configuration")


class ConfigSource(Protocol):
    """Where the configuration comes from. Both methods block and raise ``ConfigError``."""

    def read(self) -> Config:
        """The configuration as it is there now."""

    def change(self, changes: Sequence[Change]) -> None:
        """Change keys of the user's file, all or none."""


def add_routes(app: App, reloader: "Reloader") -> None:
    """Register this module's endpoint."""

    async def answer(_request: HttpRequest) -> HTTPResponse:
        plan = await reloader.reload()
        return respond(200, {"changed": plan.changed, "needs_restart": plan.needs_restart})

    app.add_route(answer, "/admin/reload", methods=["POST"], name="admin_reload")


class Reloader:
    """Applies a changed configuration: to the actors by one message, to the front end on its event loop."""

    def __init__(self, app: App, source: ConfigSource) -> None:
        self._app = app
        self._state = app.ctx.state
        self._source = source
        # One reload at a time: each awaits the disk and the actors, and the next compares with its result.
        self._turn = asyncio.Lock()

    async def reload(self) -> ReloadPlan:
        """Read, check, compare and apply the configuration, all of it or nothing.

        Raises:
            ConfigError: the file can't be used; nothing has changed.
            Unavailable: a disk or the Supervisor did not answer.

        """
        async with self._turn:
            return await self._announced()

    async def change(self, changes: Sequence[Change]) -> ReloadPlan:
        """Change keys of the user's file, then do what ``reload`` does. Raises as it does."""
        async with self._turn:
            await read_disk(_FILES, lambda: self._source.change(changes), _TIMEOUT_S)
            return await self._announced()

    async def _announced(self) -> ReloadPlan:
        self._app.ctx.notifier.reloading()
        try:
            return await self._reload()
        finally:
            self._app.ctx.notifier.ready()

    async def _reload(self) -> ReloadPlan:
        journal = self._state.system.journal
        try:
            plan, catalog, keys = await read_disk(_FILES, self._read_all, _TIMEOUT_S)
        except Unavailable as error:
            journal.record(events.ConfigRefused(error.message))
            raise
        except ConfigError as error:
            journal.record(events.ConfigRefused(error.message))
            raise
        await self._apply(plan.config, catalog, keys)
        journal.record(events.ConfigReloaded(tuple(plan.changed), tuple(plan.needs_restart)))
        return plan

    def _read_all(self) -> tuple[ReloadPlan, Catalog, Keys]:
        plan = plan_reload(self._state.config, self._source.read())
        # The files and variables that the configuration names may hold other API keys now.
        keys = read_keys(plan.config.access.keys)
        self._app.ctx.gate.refuse_opening(keys)
        return plan, Catalog(plan.config.models, self._state.catalog), keys

    async def _apply(self, config: Config, catalog: Catalog, keys: Keys) -> None:
        try:
            await ask(self._state.supervisor, lambda reply: _message(config, catalog, reply), _TIMEOUT_S)
        except TimeoutError:
            text = f"the supervisor did not answer within {_TIMEOUT_S:g} s; try to reload again"
            raise Unavailable(text, retry_after_s=5) from None
        # No await from here on: every request sees either the old configuration or the new one.
        self._state.config, self._state.catalog = config, catalog
        self._app.ctx.gate.use(config, keys)
        self._app.config["REQUEST_MAX_SIZE"] = self._state.bodies.largest = int(config.server.max_body)
        self._state.system.journal.language = config.logging.language
        logs.set_level(config.logging.level)


def _message(config: Config, catalog: Catalog, reply: Reply) -> Reconfigure:
    return Reconfigure(catalog, Settings.of(config), config.server.shutdown_grace, reply)
