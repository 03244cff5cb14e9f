"""What every test may use: recorded replies, a clock moved by hand, whole actor systems on the fake engine."""

import gc
import os
import queue
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import psutil
import pykka
import pytest
import yaml

from plimsoll import config
from plimsoll.actors import messages as m
from plimsoll.actors.replies import Delta, Failed, Finished
from plimsoll.actors.status import ModelStatus, State, Status
from plimsoll.actors.system import ActorSystem
from plimsoll.catalog.names import Catalog
from plimsoll.engine.protocol import ChatRequest
from plimsoll.memory.sample import Reading, Sample

DEADLINE_S = 60.0

# httpx gives up after 5 s unless it is told otherwise; a worker's start can take that on a busy machine.
for _part in ("connect", "read", "write", "pool"):
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, _part, DEADLINE_S)

# No test speaks TLS, and reading all certificates would take each client 20 ms. There are none in this folder.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)

# How long one example takes says more about the machine's load than about the code.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


class Recorder:
    """A Reply that remembers: what came, when, and that there was one ending."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Any] = queue.Queue()
        self.items: list[Any] = []

    def send(self, item: Any) -> None:
        self._queue.put(item)

    def next(self, kind: type | tuple[type, ...] = object, deadline_s: float = DEADLINE_S) -> Any:
        """The next item of ``kind``."""
        until = time.monotonic() + deadline_s
        while True:
            item = self._queue.get(timeout=max(0.001, until - time.monotonic()))
            self.items.append(item)
            if isinstance(item, kind):
                return item

    def ending(self, deadline_s: float = DEADLINE_S) -> Any:
        return self.next((Finished, Failed), deadline_s)

    @property
    def text(self) -> str:
        return "".join(item.text for item in self.items if isinstance(item, Delta))

    def endings(self) -> int:
        """How many endings came in all, those not yet taken included."""
        while not self._queue.empty():
            self.items.append(self._queue.get())
        return sum(isinstance(item, Finished | Failed) for item in self.items)


class Clock:
    """Seconds since the epoch, moved by hand."""

    def __init__(self) -> None:
        self.at = time.time()

    def __call__(self) -> float:
        return self.at


class Memory:
    """A sampler whose percentage the test sets."""

    def __init__(self, percent: float = 40.0) -> None:
        self.percent = percent
        self.total = 16 * 1024**3
        self.error: Exception | None = None

    def __call__(self, _tracked: Any = ()) -> Sample:
        if self.error:
            raise self.error
        return memory_sample(self.percent, time.monotonic(), self.total)


def memory_sample(percent: float, time_s: float = 0.0, total: int = 16 * 1024**3) -> Sample:
    return Sample(time_s, (Reading("host", total, int(total * percent / 100)),))


class Server:
    """An actor system under test; ``ask`` and ``status`` go the way http goes."""

    def __init__(self, entries: dict[str, Any], sampler: Memory, /, **sections: Any) -> None:
        plain = {name: {"source": entry} if isinstance(entry, str) else entry for name, entry in entries.items()}
        models = {"builtin": False, **sections.pop("models", {}), "entries": plain}
        self.memory = sampler
        self.config = config.parse({"models": models, **sections})
        self.system = ActorSystem(self.config, Catalog(self.config.models), sampler)
        self.system.start()
        self._count = 0

    def chat(self, model: str, text: str = "one two three", **options: Any) -> Recorder:
        """Send one chat; the Recorder's ``id`` names it."""
        self._count += 1
        reply = Recorder()
        reply.id = f"chat-{self._count}"  # type: ignore[attr-defined] # a test's convenience
        request = ChatRequest([{"role": "user", "content": text}], **options)
        self.system.supervisor.tell(m.Chat(reply.id, model, request, reply))  # type: ignore[attr-defined] # as above
        return reply

    def tell(self, make: Callable[[Recorder], m.Message]) -> Recorder:
        reply = Recorder()
        self.system.supervisor.tell(make(reply))
        return reply

    def status(self) -> Status:
        return self.tell(m.GetStatus).next(Status)

    def model(self, name: str) -> ModelStatus | None:
        return next((one for one in self.status().models if one.name == name), None)

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """The condition's first true value; fails with ``what`` at the deadline."""
        until = time.monotonic() + DEADLINE_S
        while time.monotonic() < until:
            if value := condition():
                return value
            time.sleep(0.005)
        pytest.fail(f"not in {DEADLINE_S:.0f} s: {what}")

    def until_state(self, name: str, *states: State | None) -> ModelStatus:
        """Wait until the model is in one of ``states``; None means that no actor lives for it."""

        def reached() -> Any:
            status = self.model(name)
            return (status or True) if (status.state if status else None) in states else None

        return self.until(reached, f"{name} in {states}")


class Process:
    """``plimsoll serve`` as a process of its own, with a configuration file that the test may rewrite."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        self.file, self.log = folder / "config.yaml", folder / "plimsoll.log"
        self._always = {
            "server": {"port": 0},
            "models": {"builtin": False, "cache_dir": str(folder)},
            "logging": {"file": str(self.log), "blackbox": "none"},
        }
        self.write(**sections)
        self.errors = (folder / "stderr").open("w+")
        command = [sys.executable, "-m", "plimsoll", "serve", "--config", str(self.file)]
        self.child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.errors, text=True, cwd=folder)
        assert self.child.stdout
        found = re.search(r"http://[\d.]+:\d+", self.child.stdout.readline())
        assert found, f"the server did not say where it listens: {self.stderr()}"
        self.url = found[0]

    def write(self, **sections: Any) -> None:
        """Replace the configuration file."""
        always = self._always
        sections = {name: always.get(name, {}) | sections.get(name, {}) for name in {*always, *sections}}
        new = self.file.with_suffix(".new")
        new.write_text(yaml.safe_dump(sections, allow_unicode=True))
        new.replace(self.file)

    def stderr(self) -> str:
        self.errors.seek(0)
        return self.errors.read()

    def logged(self, text: str) -> str:
        """The first line of the log with ``text``; waited for."""
        until = time.monotonic() + DEADLINE_S
        while time.monotonic() < until:
            lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
            if found := next((line for line in lines if text in line), None):
                return found
            time.sleep(0.01)
        pytest.fail(f"not in {DEADLINE_S:.0f} s: the log line {text!r}\n{self.stderr()}")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Its exit code."""
        self.child.send_signal(number)
        return self.child.wait(DEADLINE_S)

    def close(self) -> None:
        assert self.child.stdout
        self.child.kill()
        self.child.wait(DEADLINE_S)
        self.child.stdout.close()
        self.errors.close()


@pytest.fixture(scope="module", autouse=True)
def _collector_passes_over_what_stays() -> None:
    """The engine collects garbage at each load and end, which takes half a second with all that tests import."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def serve_process(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """``serve_process(models={"entries": ...})`` starts a server process; it is killed afterwards."""
    started: list[Process] = []

    def start(**sections: Any) -> Process:
        started.append(Process(tmp_path, **sections))
        return started[-1]

    yield start
    for one in started:
        one.close()


def workers() -> list[psutil.Process]:
    """The worker processes of this test process that still run."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if child.is_running() and child.status() != psutil.STATUS_ZOMBIE and "plimsoll.engine.worker" in child.cmdline()
    ]


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def server(memory: Memory) -> Iterator[Callable[..., Server]]:
    """``server({"a": "fake:..."})`` starts an actor system; afterwards no worker and no actor may be left."""
    started: list[Server] = []

    def start(entries: dict[str, Any], /, **sections: Any) -> Server:
        started.append(Server(entries, memory, **sections))
        return started[-1]

    yield start
    for one in started:
        one.system.stop(0.0)
    assert not workers()
    # A model's actor is told to stop without waiting for it.
    until = time.monotonic() + DEADLINE_S
    while pykka.ActorRegistry.get_all() and time.monotonic() < until:
        time.sleep(0.005)
    assert not pykka.ActorRegistry.get_all()


@pytest.fixture(autouse=True)
def _no_user_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A developer's own config must not change what the tests see, nor the tests his logs and black box."""
    monkeypatch.delenv("PLIMSOLL_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert os.environ.get("PLIMSOLL_CONFIG") is None
