"""The real app on a real socket, with scripted actors behind it."""

import asyncio
import contextlib
import functools
import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

import httpx
import msgspec
import openai
import pykka
import pytest
from sanic import Sanic
from sanic.router import Router
from sanic.touchup.schemes.base import BaseScheme
from scripts import sends

from plimsoll import config as configuration
from plimsoll.actors import messages as m
from plimsoll.actors.replies import Delta
from plimsoll.actors.status import Status
from plimsoll.catalog.entries import CatalogModel
from plimsoll.catalog.names import Catalog
from plimsoll.http.app import build
from plimsoll.http.process import liveness
from plimsoll.http.server import bind, new_loop, run
from plimsoll.journal.journal import Journal
from plimsoll.memory.ledger import Need
from plimsoll.memory.sample import Level, Reading, Sample

GB = 2**30
DEADLINE_S = 60
# Sanic rewrites its own methods when an app starts; only in this mode can a second app start in the same process.
Sanic.test_mode = True
_rewritten: dict[Any, Any] = {}
_rewrite = BaseScheme.build


def _rewrite_once(method: Any, module_globals: dict[str, Any], app: Sanic) -> Any:
    """As Sanic does it, which takes 20 ms a start; what it makes of a method depends on the app's signals alone."""
    key = method, frozenset(signal.name for signal in app.signal_router.routes)
    if key not in _rewritten:
        _rewritten[key] = _rewrite(method, module_globals, app)
    return _rewritten[key]


BaseScheme.build = _rewrite_once
Script = Callable[[Any], None]


def sample(percent: float = 50.0) -> Sample:
    return Sample(1.0, (Reading("host", 128 * GB, int(128 * GB * percent / 100)),))


def status(level: Level = Level.NORMAL, percent: float = 50.0, **changes: Any) -> Status:
    plain = Status(level, sample(percent), [], "open", False, [])
    return msgspec.structs.replace(plain, **changes)


class FakeSupervisor(pykka.ThreadingActor):
    """Answers each kind of message by the script set for it, on a thread of its own like the real one."""

    def __init__(self, heard: "queue.Queue[Any]", scripts: dict[type, Script]) -> None:
        super().__init__()
        self._heard = heard
        self._scripts = scripts

    def on_receive(self, message: Any) -> None:
        self._heard.put(message)
        if script := self._scripts.get(type(message)):
            script(message)


class FakeSystem:
    def __init__(self) -> None:
        self.journal = Journal()
        self.heard: queue.Queue[Any] = queue.Queue()
        self.scripts: dict[type, Script] = {m.GetStatus: lambda message: message.reply.send(status())}
        self.supervisor: Any = None
        self.journal = Journal()
        self.needs: dict[str, tuple[Need, ...]] = {}
        self.stopped_with: list[float] = []
        self.on_stop: Callable[[], None] = lambda: None

    def start(self) -> None:
        self.supervisor = FakeSupervisor.start(self.heard, self.scripts)

    def stop(self, grace_s: float) -> None:
        self.stopped_with.append(grace_s)
        self.on_stop()
        self.supervisor.stop(block=True, timeout=DEADLINE_S)

    def weigh(self, model: CatalogModel) -> "Future[tuple[Need, ...]]":
        weighed: Future[tuple[Need, ...]] = Future()
        weighed.set_result(self.needs.get(model.source.name, ()))
        return weighed

    def hears(self, kind: type) -> Any:
        """The next message of that kind; others are passed over."""
        while True:
            message = self.heard.get(timeout=DEADLINE_S)
            if isinstance(message, kind):
                return message

    def has_heard(self, kind: type) -> int:
        """How many of them are there now, once all that was told before has been received."""
        self.supervisor.tell(done := _Mark(threading.Event()))
        self.scripts[_Mark] = lambda mark: mark.event.set()
        assert done.event.wait(DEADLINE_S)
        return sum(isinstance(message, kind) for message in list(self.heard.queue))


class _Mark:
    def __init__(self, event: threading.Event) -> None:
        self.event = event


def _models(config: dict[str, Any]) -> configuration.ModelsConfig:
    """The section that a test gives; one that says nothing of models has these two, which are never loaded."""
    two = {"builtin": False, "entries": {"tiny": {"source": "fake:"}, "org/big": {"source": "fake:"}}}
    return configuration.parse({"models": config.get("models", two)}).models


class RunningServer:
    """``run`` in a thread, on a free port."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.system = FakeSystem()
        self.config = configuration.parse(config)
        # What a reload finds; set it anew to change the file.
        self.read: Callable[[], configuration.Config] = lambda: self.config
        self.app = build(self.config, self.system, Catalog(_models(config)), self)
        self._sock = bind("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._sock.getsockname()[1]}"
        self.stop: Callable[[], Any]
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="server")

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(DEADLINE_S)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(RuntimeError):
            self.stop()
        self.join()
        Sanic.unregister_app(self.app)
        Router.get.cache_clear()  # it would keep a thousand apps

    def join(self) -> None:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "the server did not stop"

    @contextlib.contextmanager
    def loop_held(self) -> Iterator[None]:
        """The server's loop does nothing meanwhile."""
        held, release = threading.Event(), threading.Event()
        self.loop.call_soon_threadsafe(lambda: held.set() or release.wait(DEADLINE_S))
        assert held.wait(DEADLINE_S)
        try:
            yield
        finally:
            release.set()

    def _run(self) -> None:
        def start(stop: Callable[[], None]) -> None:
            loop = asyncio.get_running_loop()
            self.loop = loop
            self.stop = functools.partial(loop.call_soon_threadsafe, stop)

        with self._sock, asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(run(self.app, self._sock, start, self._ready.set))


@pytest.fixture(autouse=True)
def _no_actor_is_left() -> Iterator[None]:
    yield
    pykka.ActorRegistry.stop_all(block=True, timeout=DEADLINE_S)


@pytest.fixture(autouse=True)
def _nobody_guards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose scripted supervisor is dead or silent goes on, for the test to look at."""
    monkeypatch.setattr(liveness, "LOOK_S", 3600.0)


@pytest.fixture
def server_config() -> dict[str, Any]:
    """What differs from the defaults; parametrize it."""
    return {}


@pytest.fixture
def server(server_config: dict[str, Any]) -> Iterator[RunningServer]:
    with RunningServer(server_config) as running:
        yield running


@pytest.fixture
def system(server: RunningServer) -> FakeSystem:
    return server.system


@pytest.fixture
def http(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=DEADLINE_S) as client:
        yield client


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=DEADLINE_S) as made:
        yield made


class Process:
    """``plimsoll serve`` on a free port, with the real actors and a fake engine."""

    def __init__(self, folder: Path, source: str = "fake:", grace: str = "10s", **sections: Any) -> None:
        file = folder / "config.yaml"
        models = {"builtin": False, "cache_dir": str(folder), "entries": {"tiny": {"source": source}}}
        server = {"port": 0, "shutdown_grace": grace}
        file.write_text(json.dumps({"server": server, "models": models, **sections}))
        self.child = subprocess.Popen(
            [sys.executable, "-m", "plimsoll", "serve", "--config", str(file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
        )
        assert self.child.stdout
        self.try_line = self.child.stdout.readline()
        self.url = self.try_line.split()[2].partition("/v1")[0]

    def end(self, number: int = signal.SIGTERM) -> tuple[int, float, str]:
        """(exit code, seconds it took, stderr)"""
        started = time.monotonic()
        self.child.send_signal(number)
        code = self.child.wait(DEADLINE_S)
        assert self.child.stderr
        return code, time.monotonic() - started, self.child.stderr.read()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(**options: Any) -> Process:
        started.append(Process(tmp_path, **options))
        return started[-1]

    yield start
    for one in started:
        one.child.kill()
        one.child.wait(DEADLINE_S)
        for pipe in (one.child.stdout, one.child.stderr):
            assert pipe
            pipe.close()


def says(*texts: str, **ending: Any) -> Script:
    """A script for ``Chat``: these deltas, then the ending."""
    return sends(*(Delta(text, count) for count, text in enumerate(texts, start=1)), **ending)


def body(**changes: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]} | changes


# Handed out as fixtures: no test module can import this one.
@pytest.fixture(name="says")
def _says() -> Callable[..., Script]:
    return says


@pytest.fixture(name="body")
def _body() -> Callable[..., dict[str, Any]]:
    return body


@pytest.fixture(name="status")
def _status() -> Callable[..., Status]:
    return status
