"""From a free port to the last answer: bind, serve, drain, stop.

Sanic's own runner is not used: on SIGTERM it first refuses connections and then waits for idle keep-alive ones, and
it cancels running answers. Its server is, through ``sanic.server.serve``.
"""

import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

from sanic import Sanic
from sanic.application.state import ApplicationServerInfo
from sanic.http.constants import HTTP, Stage
from sanic.server import serve as sanic_server

from plimsoll import __version__
from plimsoll.actors.system import ActorSystem
from plimsoll.catalog import BUILTIN, Catalog
from plimsoll.config import Config
from plimsoll.errors import ConfigError, ServerFailed
from plimsoll.http.access.gate import is_open
from plimsoll.http.access.keys import read_keys
from plimsoll.http.app import build
from plimsoll.http.front import Actors, App, Front
from plimsoll.http.limits.connection import Connection
from plimsoll.http.limits.open_files import allow_open_files
from plimsoll.http.process import guard
from plimsoll.http.process.notify import keep_told, of_environment
from plimsoll.http.process.reload import ReadConfig
from plimsoll.http.process.signals import on_signals
from plimsoll.journal import events
from plimsoll.journal.blackbox import BlackBox
from plimsoll.journal.journal import Journal
from plimsoll.journal.places import blackbox_file
from plimsoll.journal.read import last_run, peaks

_log = logging.getLogger("plimsoll.http")
_BACKLOG = 2048
_SEND_BUFFER = 128 * 1024
# For answers that the stopping actors have just failed, and for the last bytes to leave.
_LAST_WORDS_S = 1.0


MakeActors = Callable[[Config, Catalog, Journal, dict[str, int]], Actors]
"""Gets what ``ActorSystem`` gets."""


def _one_machine(config: Config, catalog: Catalog, journal: Journal, footprints: dict[str, int]) -> Actors:
    return ActorSystem(config, catalog, journal=journal, footprints=footprints)


def serve(
    config: Config,
    catalog: Catalog,
    sock: socket.socket,
    read: ReadConfig | None = None,
    make_actors: MakeActors = _one_machine,
) -> None:
    """Serve on ``sock`` (from ``bind``) until SIGTERM or SIGINT; SIGHUP asks ``read`` for the configuration again.

    Raises ``ServerFailed`` when it can't go on.
    """
    allow_open_files(config.limits.connections)
    blackbox = _open_blackbox(config)
    journal = Journal(config.logging.language, blackbox)
    footprints = _recall(journal, blackbox)
    app = build(config, make_actors(config, catalog, journal, footprints), catalog, read)

    app.ctx.notifier = of_environment()

    def on_exit() -> None:
        if blackbox:
            blackbox.close("ended at once by a second signal")

    journal.record(events.ServerStarted(__version__, sock.getsockname()[1], os.getpid()))
    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            front: Front = app.ctx.front
            runner.run(run(app, sock, lambda stop: on_signals(app, stop, on_exit), lambda: _announce(app, sock)))
        how = front.failure or "stopped"
        journal.record(events.ServerStopped(front.failure or "asked to stop"))
    except BaseException as error:
        how = f"{type(error).__name__}: {error}"
        raise
    finally:
        Sanic.unregister_app(app)
        app.ctx.notifier.close()
        if blackbox:
            blackbox.close(how)
    if front.failure:
        raise ServerFailed(f"{front.failure}, so the server has ended; start it again")


def _open_blackbox(config: Config) -> BlackBox | None:
    path = blackbox_file(config.logging.blackbox)
    return BlackBox(path) if path else None


def _recall(journal: Journal, blackbox: BlackBox | None) -> dict[str, int]:
    """Say how the last run ended, begin this one, and give back what models were seen to take."""
    if blackbox is None:
        return {}
    if last := last_run(blackbox.path):
        journal.record(last)
    blackbox.start()
    return peaks(blackbox.path)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 means any free one. Raises ``ConfigError`` saying what to do."""
    where = f"{host}:{port}"
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ConfigError(f"server.host: {host!r} is not an address of this machine: {error.strerror}") from None
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Of each connection: the system would let it grow to megabytes for a client that does not read.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        todo = {
            errno.EADDRINUSE: f"in use; stop what listens there (lsof -i :{port}) or choose another with --port",
            errno.EACCES: "not allowed for this user; choose one above 1023 with --port",
            errno.EADDRNOTAVAIL: "not an address of this machine; choose another with --host",
        }.get(error.errno or 0, f"not to be had: {error.strerror}")
        raise ConfigError(f"{where} is {todo}") from None
    sock.setblocking(False)
    return sock


def refuse_open(config: Config, sock: socket.socket) -> None:
    """Raise ``ConfigError`` where other machines could use the server without a key."""
    address = sock.getsockname()[0]
    if is_open(read_keys(config.access.keys), address):
        raise ConfigError(
            f"{address} can be reached from other machines and no API key is configured: add one under access.keys, or"
            " start with --insecure if everybody who reaches it may use and administer it",
            param="access.keys",
        )


async def run(
    app: App, sock: socket.socket, on_start: Callable[[Callable[[], None]], None], on_serving: Callable[[], None]
) -> None:
    """Serve on ``sock`` until the function that ``on_start`` was given is called, then drain and stop."""
    front: Front = app.ctx.front
    stop = asyncio.Event()
    connections: set[Any] = app.ctx.sweeper.connections
    app.ctx.gate.bound_to(sock.getsockname()[0])
    # Without this Sanic sends an empty alt-svc header.
    app.state.server_info.append(ApplicationServerInfo({"version": HTTP.VERSION_1}))
    server = sanic_server(
        None,
        None,
        app,
        sock=sock,
        protocol=Connection,
        loop=asyncio.get_running_loop(),
        backlog=_BACKLOG,
        run_async=True,
        connections=connections,
    )
    on_start(stop.set)
    await server.startup()
    await server.before_start()
    try:
        await server
        await server.after_start()
        on_serving()
        watch = asyncio.create_task(_end_when_failed(front, stop))
        await stop.wait()
        watch.cancel()
        front.stopping = True
        app.ctx.notifier.stopping()
        _log.info(
            "stopping: running answers have %g s; a second signal ends them at once", front.config.server.shutdown_grace
        )
        if not await front.drained(front.config.server.shutdown_grace):
            _log.warning("stopping: some answers were still running and are ended now")
    finally:
        front.stopping = True
        await server.before_stop()
        await server.after_stop()
        await _close(server, connections)
    _log.info("stopped")


async def _end_when_failed(front: Front, stop: asyncio.Event) -> None:
    """A server without its Supervisor serves nobody: it ends, so that whoever keeps it running starts it again."""
    front.failure = await guard.until_failed(front, guard.LOOK_S)
    _log.critical("%s: the server ends with exit code 70, to be started again", front.failure)
    front.stopping = True
    stop.set()


async def _close(server: Any, connections: set[Any]) -> None:
    if server.server is not None:
        server.server.close()
    await _until(lambda: not any(_is_busy(connection) for connection in connections))
    # Not wait_closed(): since Python 3.12 it waits for idle keep-alive connections, which nobody would close.
    for connection in list(connections):
        connection.close()
    await _until(lambda: not connections)
    for connection in list(connections):
        connection.abort()


def _is_busy(connection: Any) -> bool:
    return connection.http is not None and connection.http.stage in (Stage.HANDLER, Stage.RESPONSE)


async def _until(done: Callable[[], bool]) -> None:
    """Poll, for what Sanic tells nobody, up to ``_LAST_WORDS_S``."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LAST_WORDS_S):
            while not done():  # noqa: ASYNC110 - as said
                await asyncio.sleep(0.01)


def _announce(app: App, sock: socket.socket) -> None:
    front, notifier = app.ctx.front, app.ctx.notifier
    if notifier.listens:
        notifier.ready()
        # The loop keeps no reference to a task.
        app.ctx.telling = asyncio.get_running_loop().create_task(keep_told(front, notifier))
    host, port = sock.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - shown, not bound
    url = f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
    _log.info("listening on %s", url)
    print(_try_line(url, front.catalog.names()), flush=True)  # noqa: T201 - for the person at the terminal


def _try_line(url: str, names: list[str]) -> str:
    """A command that can be pasted."""
    if not names:
        return f"curl {url}/health"
    name = BUILTIN.name if BUILTIN.name in names else names[0]
    # Streamed and greedy: a small model at temperature 1 may talk for minutes before a plain answer ends.
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    body = json.dumps({"model": name, "stream": True, "temperature": 0, "messages": messages})
    return f"curl -sN {url}/v1/chat/completions -d '{body}'"


def new_loop() -> asyncio.AbstractEventLoop:
    """Uvloop where there is one."""
    try:
        import uvloop  # noqa: PLC0415 - absent on some platforms
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
