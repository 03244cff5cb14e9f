"""The Sanic application: routes, errors, limits."""

import asyncio
import itertools
from typing import Any

from sanic import Sanic
from sanic.config import Config as SanicConfig

from plimsoll.catalog.names import Catalog
from plimsoll.config import Config
from plimsoll.http.access.gate import Gate
from plimsoll.http.anthropic import routes as anthropic
from plimsoll.http.app_state import Actors, App, AppState
from plimsoll.http.errors import ErrorResponses
from plimsoll.http.limits.body_budget import HttpRequest
from plimsoll.http.limits.connection_timeouts import ConnectionSweeper
from plimsoll.http.ollama import routes as ollama
from plimsoll.http.openai import routes as openai
from plimsoll.http.openapi import document as openapi
from plimsoll.http.operations import admin, events, health, history, metrics, model_search, page, probes, request_list
from plimsoll.http.process import model_settings, reload
from plimsoll.http.process.liveness import Notifier
from plimsoll.http.process.reload import ConfigSource, Reloader

_numbers = itertools.count(1)


class _Application(Sanic[Any, Any]):
    """Says how errors of each route are written. Sanic would read and parse the handler's source to find out."""

    def add_route(self, *args: Any, **options: Any) -> Any:
        options["error_format"] = "json"
        return super().add_route(*args, **options)


def build(config: Config, system: Actors, catalog: Catalog, source: ConfigSource) -> App:
    """The app, with what its parts share at ``app.ctx``. ``source`` is where the configuration is read again.

    The actors start before the app serves and stop after it.
    """
    errors = ErrorResponses()
    # The name is numbered, because Sanic allows each name once in a process. SANIC_* variables are not read.
    app: App = _Application(
        f"plimsoll-{next(_numbers)}",
        config=SanicConfig(env_prefix=None),
        request_class=HttpRequest,
        error_handler=errors,
        configure_logging=False,
    )
    app.config.update(
        {
            "REQUEST_MAX_SIZE": int(config.server.max_body),
            "REQUEST_MAX_HEADER_SIZE": int(config.limits.header_size),
            # How long the end of an answer may take to leave before its connection closes.
            "GRACEFUL_TCP_CLOSE_TIMEOUT": config.limits.slow_client,
            "ACCESS_LOG": False,
            "MOTD": False,
            "AUTO_EXTEND": False,
        }
    )
    state = AppState(config, system, catalog)
    app.ctx.state, app.ctx.errors = state, errors
    app.ctx.gate = gate = Gate(config)
    app.ctx.slots, app.ctx.bodies = state.slots, state.bodies
    ConnectionSweeper(config.limits, state.slots).add_to(app)
    app.register_middleware(gate.mark_origin, "response")
    app.ctx.notifier = Notifier()
    app.ctx.reloader = Reloader(app, source)
    app.register_middleware(state.refuse_when_stopping, "request")
    app.register_middleware(state.count_left_out, "request")
    for part in (
        openai,
        anthropic,
        ollama,
        health,
        admin,
        events,
        history,
        request_list,
        model_search,
        metrics,
        openapi,
        page,
        probes,
    ):
        part.add_routes(app, state)
    reload.add_routes(app, app.ctx.reloader)
    model_settings.add_routes(app, app.ctx.reloader)

    async def open_responses(_app: App) -> None:
        await state.responses.open()

    # Both block: starting waits for threads, stopping for workers that end.
    async def start_actors(_app: App) -> None:
        await asyncio.to_thread(system.start)

    async def stop_actors(_app: App) -> None:
        # Running answers have had their grace (server.shutdown_grace): what still runs is ended.
        await asyncio.to_thread(system.stop, 0.0)
        state.responses.close()

    app.register_listener(open_responses, "before_server_start")
    app.register_listener(start_actors, "before_server_start")
    app.register_listener(stop_actors, "after_server_stop")
    return app
