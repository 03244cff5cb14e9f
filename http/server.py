"""The server's process, from the bound port to the last answer: bind, serve, drain, stop.

Sanic's runner is not used, only its server (``sanic.server.serve``). On SIGTERM the runner first refuses connections,
then waits for idle keep-alive connections, and cancels running answers.
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
from plimsoll.catalog.names import Catalog
from plimsoll.catalog.source import BUILTIN
from plimsoll.config import Config
from plimsoll.errors import ConfigError, ServerFailed
from plimsoll.http.access.gate import is_open
from plimsoll.http.access.permissions import read_keys
from plimsoll.http.app import build
from plimsoll.http.app_state import Actors, App, AppState
from plimsoll.http.limits.connection import Connection
from plimsoll.http.os_settings import allow_open_files, end_with_parent, unmap_large_blocks
from plimsoll.http.process import liveness
from plimsoll.http.process.liveness import notifier_from_environment, notify_forever
from plimsoll.http.process.reload import ConfigSource
from plimsoll.http.process.signals import on_signals
from plimsoll.journal import events
from plimsoll.journal.blackbox import BlackBox
from plimsoll.journal.journal import Journal
from plimsoll.journal.read import last_run, peaks
from plimsoll.journal.store import blackbox_file

_log = logging.getLogger("plimsoll.http")
_BACKLOG = 2048
_STANDARD_OUTPUT = 1
_SEND_BUFFER = _RECEIVE_BUFFER = 128 * 1024
# How long the answers that the stopping actors have just failed may take to be written and to leave.
_LAST_ANSWERS_S = 1.0


MakeActors = Callable[[Config, Catalog, Journal, dict[str, int]], Actors]
"""Makes the actors; called with the arguments of ``ActorSystem``."""


def _one_machine(config: Config, catalog: Catalog, journal: Journal, footprints: dict[str, int]) -> Actors:
    return ActorSystem(config, catalog, journal=journal, footprints=footprints)


def serve(
    config: Config,
    catalog: Catalog,
    sock: socket.socket,
    source: ConfigSource,
    make_actors: MakeActors = _one_machine,
    *,
    parent: int | None = None,
) -> None:
    """Serve on ``sock`` (from ``bind``) until SIGTERM or SIGINT; on SIGHUP read ``source`` again.

    With ``parent``, a pid, the server also stops when its parent process is not that any more.

    Raises ``ServerFailed`` when the server can't go on.
    """
    allow_open_files(config.limits.connections)
    unmap_large_blocks()
    blackbox = _open_blackbox(config)
    journal = Journal(config.logging.language, blackbox)
    footprints = _begin_run(journal, blackbox)
    app = build(config, make_actors(config, catalog, journal, footprints), catalog, source)

    app.ctx.notifier = notifier_from_environment()

    def on_exit() -> None:
        if blackbox:
            blackbox.close("ended at once by a second signal")

    def on_start(stop: Callable[[], None]) -> None:
        on_signals(app, stop, on_exit)
        if parent is not None:
            app.ctx.parent = asyncio.get_running_loop().create_task(end_with_parent(parent, stop))

    journal.record(events.ServerStarted(__version__, sock.getsockname()[1], os.getpid()))
    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            state: AppState = app.ctx.state
            runner.run(run(app, sock, on_start, lambda: _announce(app, sock)))
        how = state.failure or "stopped"
        journal.record(events.ServerStopped(state.failure or "asked to stop"))
    except BaseException as error:
        how = f"{type(error).__name__}: {error}"
        raise
    finally:
        Sanic.unregister_app(app)
        app.ctx.notifier.close()
        if blackbox:
            blackbox.close(how)
    if state.failure:
        raise ServerFailed(f"{state.failure}, so the server has ended; start it again")


def _open_blackbox(config: Config) -> BlackBox | None:
    path = blackbox_file(config.logging.blackbox)
    return BlackBox(path) if path else None


def _begin_run(journal: Journal, blackbox: BlackBox | None) -> dict[str, int]:
    """Log how the last run ended, begin this one, and return the footprints that models were seen to have."""
    if blackbox is None:
        return {}
    if last := last_run(blackbox.path):
        journal.record(last)
    blackbox.start()
    return peaks(blackbox.path)


def bind(host: str, port: int, who_listens: Callable[[int], str] = lambda _port: "") -> socket.socket:
    """A listening socket; port 0 means any free port.

    Raises ``ConfigError`` saying what to do. ``who_listens`` names the process that has the port, or returns "".
    """
    where = f"{host}:{port}"
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ConfigError(f"server.host: {host!r} is not an address of this machine: {error.strerror}") from None
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # The buffer of each connection. The system would let it grow to megabytes for a client that does not read.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        # The same for a client that sends a body which is not read yet.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        who = who_listens(port) if error.errno == errno.EADDRINUSE else ""
        found = f"in use by {who}; stop that" if who else f"in use; stop what listens there (lsof -i :{port})"
        todo = {
            errno.EADDRINUSE: f"{found} or choose another with --port",
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
    state: AppState = app.ctx.state
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
        watch = asyncio.create_task(_end_when_failed(state, stop))
        await stop.wait()
        watch.cancel()
        state.stopping = True
        app.ctx.notifier.stopping()
        _log.info(
            "stopping: running answers have %g s; a second signal ends them at once", state.config.server.shutdown_grace
        )
        if not await state.drained(state.config.server.shutdown_grace):
            _log.warning("stopping: some answers were still running and are ended now")
    finally:
        state.stopping = True
        await server.before_stop()
        await server.after_stop()
        await _close(server, connections)
        state.catalog.close()
    _log.info("stopped")


async def _end_when_failed(state: AppState, stop: asyncio.Event) -> None:
    """End the server when its Supervisor has failed, so that launchd or systemd starts it again."""
    state.failure = await liveness.wait_until_failed(state, liveness.LOOK_S)
    _log.critical("%s: the server ends with exit code 70, to be started again", state.failure)
    state.stopping = True
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
    """Wait up to ``_LAST_ANSWERS_S`` until ``done()``; polled, because Sanic has no event for it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LAST_ANSWERS_S):
            while not done():  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.01)


def _announce(app: App, sock: socket.socket) -> None:
    state, notifier = app.ctx.state, app.ctx.notifier
    if notifier.listens:
        notifier.ready()
        # The loop keeps no reference to a task.
        app.ctx.telling = asyncio.get_running_loop().create_task(notify_forever(state, notifier))
    host, port = sock.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - shown, not bound
    url = f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
    _log.info("listening on %s", url)
    _tell_terminal(_next_steps(url, state.catalog.names()))


def _tell_terminal(lines: list[str]) -> None:
    """Write ``lines`` to standard output; a closed terminal or pipe does not end the server.

    Written past Python's buffer, which would keep what can't be written and fail again when the process ends.
    """
    with contextlib.suppress(OSError):
        os.write(_STANDARD_OUTPUT, "".join(f"{line}\n" for line in lines).encode())


def _next_steps(url: str, names: list[str]) -> list[str]:
    """Five lines about what to do next; the first is a command to paste."""
    return [
        _try_line(url, names),
        f"{url}/ is its page; plimsoll chat talks with a model, plimsoll top watches memory (in another terminal)",
        f"OpenAI clients take {url}/v1 as their base URL, Anthropic's and Ollama's {url}",
        f"{len(names)} models are offered: plimsoll models lists them, plimsoll doctor says what was passed over",
        "more of them: plimsoll pull, or models.entries in ~/.config/plimsoll/config.yaml",
    ]


def _try_line(url: str, names: list[str]) -> str:
    """A command to paste."""
    if not names:
        return f"curl {url}/health"
    name = BUILTIN.name if BUILTIN.name in names else names[0]
    # Streamed and greedy: a small model at temperature 1 may talk for minutes before a plain answer ends.
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    body = json.dumps({"model": name, "stream": True, "temperature": 0, "messages": messages})
    return f"curl -sN {url}/v1/chat/completions -d '{body}'"


def new_loop() -> asyncio.AbstractEventLoop:
    """An event loop of uvloop where that is installed, else of asyncio."""
    try:
        import uvloop  # noqa: PLC0415 - absent on some platforms
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
