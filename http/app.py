"""The Sanic application: routes, errors, limits."""

import asyncio
import itertools

from sanic import Sanic
from sanic.config import Config as SanicConfig

from plimsoll.config import Config
from plimsoll.http.access.gate import Gate
from plimsoll.http.anthropic import routes as anthropic
from plimsoll.http.errors import JsonErrors
from plimsoll.http.front import Actors, App, Front, ModelCatalog
from plimsoll.http.limits.sweeper import Sweeper
from plimsoll.http.ollama import routes as ollama
from plimsoll.http.openai import routes as openai
from plimsoll.http.openapi import document as openapi
from plimsoll.http.operations import admin, events, health, history, metrics, page
from plimsoll.http.process import reload
from plimsoll.http.process.notify import Notifier
from plimsoll.http.process.reload import ReadConfig, Reloader

_numbers = itertools.count(1)


def build(config: Config, system: Actors, catalog: ModelCatalog, read: ReadConfig | None = None) -> App:
    """The app, with ``app.ctx.front``, ``app.ctx.gate`` and ``app.ctx.reloader``, which asks ``read`` what is new.

    Actors start before it serves and stop after.
    """
    # Sanic keeps a registry of names, and reads SANIC_* from the environment unless told not to.
    app: App = Sanic(
        f"plimsoll-{next(_numbers)}",
        config=SanicConfig(env_prefix=None),
        error_handler=JsonErrors(),
        configure_logging=False,
    )
    app.config.update(
        {
            "REQUEST_MAX_SIZE": int(config.server.max_body),
            "REQUEST_MAX_HEADER_SIZE": int(config.limits.header_size),
            # What is left of an answer after which the connection closes.
            "GRACEFUL_TCP_CLOSE_TIMEOUT": config.limits.slow_client,
            "ACCESS_LOG": False,
            "MOTD": False,
            "AUTO_EXTEND": False,
        }
    )
    front = Front(config, system, catalog)
    app.ctx.front = front
    app.ctx.gate = gate = Gate(config)
    Sweeper(config.limits).add_to(app)
    app.register_middleware(gate.mark_origin, "response")
    app.ctx.notifier = Notifier()
    app.ctx.reloader = Reloader(app, read or (lambda: config))
    app.register_middleware(front.refuse_when_stopping, "request")
    for part in (openai, anthropic, ollama, health, admin, events, history, metrics, openapi, page):
        part.add_routes(app, front)
    reload.add_routes(app, app.ctx.reloader)

    # Both block, the one on starting threads and the other on workers that end.
    async def start_actors(_app: App) -> None:
        await asyncio.to_thread(system.start)

    async def stop_actors(_app: App) -> None:
        # Answers had their grace before: what is open now is ended.
        await asyncio.to_thread(system.stop, 0.0)

    app.register_listener(start_actors, "before_server_start")
    app.register_listener(stop_actors, "after_server_stop")
    return app
