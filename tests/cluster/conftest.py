"""Made-up nodes, with figures in GiB so that they can be checked in the head; and real ones of Ray."""

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from ray_nodes import DEADLINE_S, MONITOR_OFF, RayCluster

from plimsoll.cluster.node import NodeView, Standing, Traffic
from plimsoll.memory.ledger import Need, Seat
from plimsoll.memory.sample import Level, Reading, Sample

GIB = 1024**3
QUICK_CHECKS = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}


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


@pytest.fixture(scope="session")
def _ray() -> Iterator[RayCluster]:
    cluster = RayCluster(MONITOR_OFF | QUICK_CHECKS)
    yield cluster
    cluster.close()


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
        self.http = httpx.Client(base_url=found[0], timeout=280.0)

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
    while left := node_workers(ray_cluster.folder):
        assert time.monotonic() < until, left
        time.sleep(0.05)


def node_workers(folder: Path) -> list[psutil.Process]:
    """The workers of models below the nodes in ``folder``; orphans too, for they have its variables."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            home = process.environ().get("XDG_STATE_HOME")
            if "plimsoll.engine.worker" in process.cmdline() and home == str(folder / "state"):
                found.append(process)
    return found


@pytest.fixture(name="workers")
def _workers(ray_cluster: RayCluster) -> Callable[[], list[psutil.Process]]:
    return lambda: node_workers(ray_cluster.folder)
