"""Reading the configuration again: SIGHUP and ``POST /admin/reload``."""

import asyncio
from collections.abc import Callable

from sanic import HTTPResponse

from plimsoll import logs
from plimsoll.actors.messages import Reconfigure, Reply
from plimsoll.actors.system import thresholds_of
from plimsoll.catalog import Catalog
from plimsoll.config import Config
from plimsoll.errors import ConfigError, Unavailable
from plimsoll.http.access.keys import Keys, read_keys
from plimsoll.http.errors import respond
from plimsoll.http.front import AnyRequest, App
from plimsoll.http.stream import ask
from plimsoll.journal import events
from plimsoll.reload_plan import ReloadPlan, plan_reload

_TIMEOUT_S = 10.0

ReadConfig = Callable[[], Config]
"""Reads the configuration from where it came from; blocks. Raises ``ConfigError``."""


def add_routes(app: App, reloader: "Reloader") -> None:
    """Register this module's endpoint."""

    async def answer(_request: AnyRequest) -> HTTPResponse:
        plan = await reloader.reload()
        return respond(200, {"changed": plan.changed, "needs_restart": plan.needs_restart})

    app.add_route(answer, "/admin/reload", methods=["POST"], name="admin_reload")


class Reloader:
    """Brings what has changed to whom it concerns: the actors by one message, the front end on its loop."""

    def __init__(self, app: App, read: ReadConfig) -> None:
        self._app = app
        self._front = app.ctx.front
        self._read = read
        # A reload awaits the disk and the actors; the next one compares with what the one before it has done.
        self._turn = asyncio.Lock()

    async def reload(self) -> ReloadPlan:
        """Read, check, compare, apply; all or nothing.

        Raises:
            ConfigError: the file can't be used; nothing has changed.
            Unavailable: the Supervisor did not answer.

        """
        async with self._turn:
            self._app.ctx.notifier.reloading()
            try:
                return await self._reload()
            finally:
                self._app.ctx.notifier.ready()

    async def _reload(self) -> ReloadPlan:
        journal = self._front.system.journal
        try:
            plan, catalog, keys = await asyncio.to_thread(self._look)
        except ConfigError as error:
            journal.record(events.ConfigRefused(error.message))
            raise
        await self._apply(plan.config, catalog, keys)
        journal.record(events.ConfigReloaded(tuple(plan.changed), tuple(plan.needs_restart)))
        return plan

    def _look(self) -> tuple[ReloadPlan, Catalog, Keys]:
        plan = plan_reload(self._front.config, self._read())
        # Keys may also have changed in the files and variables that the configuration names.
        keys = read_keys(plan.config.access.keys)
        self._app.ctx.gate.refuse_opening(keys)
        return plan, Catalog(plan.config.models), keys

    async def _apply(self, config: Config, catalog: Catalog, keys: Keys) -> None:
        try:
            await ask(self._front.supervisor, lambda reply: _message(config, catalog, reply), _TIMEOUT_S)
        except TimeoutError:
            text = f"the supervisor did not answer within {_TIMEOUT_S:g} s; try to reload again"
            raise Unavailable(text, retry_after_s=5) from None
        # No await in between: every request sees either the old things or the new ones.
        self._front.config, self._front.catalog = config, catalog
        self._app.ctx.gate.use(config, keys)
        self._app.config["REQUEST_MAX_SIZE"] = int(config.server.max_body)
        self._front.system.journal.language = config.logging.language
        logs.set_level(config.logging.level)


def _message(config: Config, catalog: Catalog, reply: Reply) -> Reconfigure:
    memory = config.memory
    return Reconfigure(
        catalog=catalog,
        thresholds=thresholds_of(memory),
        limit_bytes=None if memory.limit is None else int(memory.limit),
        queue=config.models.queue,
        critical_grace_s=memory.critical_grace,
        drain_s=config.server.shutdown_grace,
        reply=reply,
    )
