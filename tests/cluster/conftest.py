"""Made-up nodes, with figures in GiB so that they can be checked in the head; and real ones of Ray."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from plimsoll.cluster.node import NodeView, Standing, Traffic
from plimsoll.memory.plan import Need, Seat
from plimsoll.memory.sample import Level, Reading, Sample

GIB = 1024**3
DEADLINE_S = 15.0
# By the ledgers ``one`` holds three and ``two`` holds two fake models: each is granted 501 MiB and uses 10.
ONE_MIB, TWO_MIB = 1800, 1380


class Figures:
    """Builders; every node reports at second 1000, of its own clock and of the receiver's."""

    NOW = 1000.0

    def need(self, size: float) -> Need:
        return Need(measured_bytes=int(size * GIB))

    def seat(
        self, name: str, holds: float = 10, reserved: float | None = None, unused_s: float = 0, **flags: Any
    ) -> Seat:
        granted = int((holds if reserved is None else reserved) * GIB)
        return Seat(name, granted, int(holds * GIB), self.NOW - unused_s, **({"idle": True} | flags))

    def view(self, node: str, used: float, *seats: Seat, total: float = 100, **rest: Any) -> NodeView:
        sample = Sample(self.NOW, (Reading("host", int(total * GIB), int(used * GIB)),))
        settled = {"sample": sample, "level": Level.NORMAL, "sent_s": self.NOW, "last_seen": self.NOW, **rest}
        return NodeView(node, node, seats=seats, warning_percent=85.0, critical_percent=95.0, **settled)

    def node(self, node: str, used: float, *seats: Seat, **rest: Any) -> Standing:
        return Standing(self.view(node, used, *seats, **rest))

    def traffic(self, model: str, running: int = 0, queued: int = 0, slots: int = 4) -> Traffic:
        return Traffic(model, running, queued, slots)


@pytest.fixture
def figures() -> Figures:
    return Figures()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


class RayNode:
    """``ray start --block`` as a child with a process group of its own, so that it can be killed like a machine."""

    def __init__(self, folder: Path, name: str, mib: int, *options: str) -> None:
        self.name = name
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--node-name={name}"),
            *(
                "--include-log-monitor=false",
                "--num-cpus=1",
                "--object-store-memory=100000000",
                "--disable-usage-stats",
            ),
            *("--min-worker-port=0", "--max-worker-port=0", "--node-ip-address=127.0.0.1"),
            *(f'--resources={{"plimsoll_mib": {mib}}}', *options),
        ]
        # Ray's own monitor would kill at 95 % of the machine, whatever else runs there.
        variables = {"RAY_memory_monitor_refresh_ms": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
        variables |= {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
        variables |= {f"XDG_{kind}_HOME": str(folder / kind.lower()) for kind in ("STATE", "CONFIG")}
        with (folder / f"{name}.log").open("w") as log:
            self.child = subprocess.Popen(
                command, env={**os.environ, **variables}, stdout=log, stderr=log, cwd=folder, start_new_session=True
            )

    def kill(self) -> None:
        """As a machine that loses its power: everything at once, without a word."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait(DEADLINE_S)


class RayCluster:
    """Ray's head is the node ``one``; ``two`` is there whenever a test begins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.one = RayNode(
            *(folder, "one", ONE_MIB, "--head", f"--port={port}"),
            *("--include-dashboard=false", f"--temp-dir={folder}/r"),
        )
        until = time.monotonic() + DEADLINE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if time.monotonic() > until or self.one.child.poll() is not None:
                    self.one.kill()
                    pytest.fail((folder / "one.log").read_text())
                time.sleep(0.05)
        self.two = self.start_two()

    def start_two(self) -> RayNode:
        self.two = RayNode(self.folder, "two", TWO_MIB, f"--address={self.address}")
        return self.two

    def close(self) -> None:
        self.two.kill()
        self.one.kill()


@pytest.fixture(scope="session")
def _ray() -> Iterator[RayCluster]:
    # Ray's sockets lie below it, and their paths may have no more than 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="pl", dir="/tmp"))
    cluster = RayCluster(folder)
    yield cluster
    cluster.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def ray_cluster(_ray: RayCluster) -> RayCluster:
    if _ray.two.child.poll() is not None:
        _ray.start_two()
    return _ray


class ClusterServer:
    """``plimsoll serve --cluster`` as a process of its own, on the head's machine."""

    def __init__(self, folder: Path, address: str, **sections: Any) -> None:
        file = folder / "config.yaml"
        self.log = folder / "plimsoll.log"
        always: dict[str, dict[str, Any]] = {
            "models": {"builtin": False, "cache_dir": str(folder)},
            "server": {"port": 0, "shutdown_grace": "5s"},
            "cluster": {"address": address},
            "engine": {"spare_worker": False, "kv_budget": "200MiB"},
            "logging": {"file": str(self.log), "blackbox": "none"},
        }
        file.write_text(
            json.dumps({name: always.get(name, {}) | sections.get(name, {}) for name in {*always, *sections}})
        )
        self._errors = (folder / "stderr").open("w+")
        command = [sys.executable, "-m", "plimsoll", "serve", "--cluster", "--config", str(file)]
        self.child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._errors, text=True, cwd=folder)
        assert self.child.stdout
        found = re.search(r"http://[\d.]+:\d+", self.child.stdout.readline())
        if found is None:
            self.child.kill()
            pytest.fail(self.stderr())
        self.http = httpx.Client(base_url=found[0], timeout=60.0)

    def stderr(self) -> str:
        self._errors.seek(0)
        return self._errors.read()

    def chat(self, model: str, text: str = "one two three", **options: Any) -> httpx.Response:
        messages = options.pop("messages", [{"role": "user", "content": text}])
        return self.http.post("/v1/chat/completions", json={"model": model, "messages": messages, **options})

    def says(self, model: str, text: str = "one two three") -> str:
        answer = self.chat(model, text)
        assert answer.status_code == 200, answer.text
        said: str = answer.json()["choices"][0]["message"]["content"]
        return said

    def stream(self, model: str, text: str = "one two three") -> Any:
        messages = [{"role": "user", "content": text}]
        return self.http.stream(
            "POST", "/v1/chat/completions", json={"model": model, "messages": messages, "stream": True}
        )

    def nodes(self) -> dict[str, list[str]]:
        """The models of each node, by its name."""
        return {one["name"]: one["models"] for one in self.http.get("/health").json().get("nodes", [])}

    def until(self, condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
        until = time.monotonic() + deadline_s
        while time.monotonic() < until:
            if value := condition():
                return value
            time.sleep(0.05)
        pytest.fail(f"not in {deadline_s:.0f} s: {what}\n{self.stderr()}")

    def close(self) -> None:
        self.http.close()
        self.child.kill()
        self.child.wait(DEADLINE_S)
        assert self.child.stdout
        self.child.stdout.close()
        self._errors.close()


@pytest.fixture
def cluster_server(ray_cluster: RayCluster, tmp_path: Path) -> Iterator[Callable[..., ClusterServer]]:
    """``cluster_server(models={"entries": ...})`` serves with both nodes; afterwards no worker is left."""
    started: list[ClusterServer] = []

    def start(**sections: Any) -> ClusterServer:
        server = ClusterServer(tmp_path, ray_cluster.address, **sections)
        started.append(server)
        server.until(lambda: len(server.nodes()) == 2, "both nodes")
        return server

    yield start
    for one in started:
        one.close()
    until = time.monotonic() + DEADLINE_S
    while node_workers():
        assert time.monotonic() < until, node_workers()
        time.sleep(0.05)


def node_workers() -> list[psutil.Process]:
    """The workers of models below this process's nodes; orphans too, for they are told by their folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "plimsoll.engine.worker" in process.cmdline() and "RAY_JOB_ID" in process.environ():
                found.append(process)
    return found


@pytest.fixture(name="workers")
def _workers() -> Callable[[], list[psutil.Process]]:
    return node_workers
