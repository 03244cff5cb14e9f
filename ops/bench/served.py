"""A ``plimsoll serve`` process for benchmarks: its URL, its processes, their memory and CPU time."""

import contextlib
import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, Self

import psutil

QUIET: dict[str, Any] = {"server": {"port": 0}, "logging": {"file": "none", "blackbox": "none"}}


class Served:
    """A server of its own on a free port. ``start_s`` is from its start to the first 200 of /health."""

    def __init__(self, folder: Path, settings: dict[str, Any], cores: set[int] | None = None) -> None:
        path = folder / "bench.yaml"
        path.write_text(json.dumps({**QUIET, **settings}))  # JSON is YAML
        started = time.monotonic()
        self.process = psutil.Popen(
            [sys.executable, "-m", "plimsoll", "serve", "--config", str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        found = re.search(r"http://([\d.]+):(\d+)", self.process.stdout.readline())
        if found is None:
            self.process.kill()
            raise RuntimeError("the server did not start")
        self.url, self.host, self.port = found[0], found[1], int(found[2])
        self.get("/health")
        self.start_s = time.monotonic() - started
        if cores:
            for thread in self.process.threads():
                psutil.Process(thread.id).cpu_affinity(list(cores))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as response:
            return json.load(response)

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(self.url + path, json.dumps(body or {}).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=300) as response:
            return json.load(response)

    def worker(self, model: str) -> psutil.Process:
        return psutil.Process(next(one["pid"] for one in self.get("/admin/models")["models"] if one["name"] == model))

    def cpu_s(self) -> float:
        """CPU time of the front alone."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def rss_mb(self) -> float:
        """Resident memory of the front alone."""
        return float(self.process.memory_info().rss) / 1e6

    def rss_all_mb(self) -> float:
        """Resident memory of the front and all workers."""
        return self.rss_mb() + sum(child.memory_info().rss for child in self.process.children(recursive=True)) / 1e6

    def close(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.process.terminate()
        self.process.wait(60)
