"""Figures of the server as a whole: start, size of the front, what a killed worker and a killed front cost.

Run: python ops/bench/basics.py. Needs the built-in model in the cache (make serve fetches it). Loopback only.
"""

import json
import os
import platform
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import psutil
from served import Served

MODEL = "smollm2-135m"
OTHER = "fake:tokens_per_s=50,answer=la,length=100000,context=1000000"
SETTINGS = {
    "models": {"entries": {"other": {"source": OTHER}}},
    "logging": {"file": "none", "blackbox": "none"},
}


class Streaming(Served):
    """The server with streams of its own; ``start_s`` is from its start to the first 200 of /health."""

    def __init__(self, folder: Path) -> None:
        started = time.monotonic()
        super().__init__(folder, SETTINGS)
        self.health()
        self.start_s = time.monotonic() - started

    def lines(self, model: str, max_tokens: int) -> Iterator[str]:
        """The data lines of one streamed answer."""
        messages = [{"role": "user", "content": "Tell me a long story."}]
        body = {"model": model, "messages": messages, "stream": True, "max_tokens": max_tokens}
        with self.request("POST", "/v1/chat/completions", body, timeout_s=60) as response:
            for raw in response:
                if raw.startswith(b"data: "):
                    yield raw.decode().removeprefix("data: ").strip()

    def worker(self, model: str) -> psutil.Process:
        return psutil.Process(next(one["pid"] for one in self.models() if one["name"] == model))

    def rss_mb(self) -> float:
        return float(self.front.memory_info().rss) / 1024**2


def main() -> None:
    """Measure and print one line per figure."""
    versions = " ".join(f"{name} {metadata.version(name)}" for name in ("mlx", "mlx-lm", "sanic", "pykka"))
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        starts = []
        for _ in range(7):
            server = Streaming(folder)
            starts.append(server.start_s)
            server.stop()
        row(
            "start to first 200 of /health, s",
            "< 1",
            f"median {statistics.median(starts):.2f}, worst {max(starts):.2f}",
        )
        server = Streaming(folder)
        row("RSS of the front at start, MiB", "< 90", f"{server.rss_mb():.1f}")
        for _ in range(20):
            list(server.lines("other", 40))
        row("RSS of the front after 20 streams, MiB", "< 90", f"{server.rss_mb():.1f}")
        killed_worker(server)
        killed_front(server)


def killed_worker(server: Streaming) -> None:
    """Kill -9 a worker in mid-stream while another model streams."""
    gaps, stop = [], threading.Event()

    def watch() -> None:
        last = time.monotonic()
        for _ in server.lines("other", 100_000):
            now = time.monotonic()
            gaps.append(now - last)
            last = now
            if stop.is_set():
                return

    bystander = threading.Thread(target=watch)
    bystander.start()
    stream = server.lines(MODEL, 400)
    for _ in range(10):
        next(stream)
    gaps.clear()
    server.worker(MODEL).kill()
    killed = time.monotonic()
    error = json.loads(list(stream)[-1])["error"]["code"]
    row("kill -9 of a worker to its stream's error event, s", "< 1", f"{time.monotonic() - killed:.3f} ({error})")
    again = time.monotonic()
    first = next(line for line in server.lines(MODEL, 4) if '"content"' in line)
    row(
        "next request of that model to its first token, s",
        "served",
        f"{time.monotonic() - again:.2f}" if first else "no",
    )
    stop.set()
    bystander.join()
    row("longest gap of the other model's stream meanwhile, ms", "20 = none", f"{1000 * max(gaps):.0f}")


def killed_front(server: Streaming) -> None:
    """Kill -9 the front with two workers alive, one of them streaming."""
    stream = server.lines("other", 100_000)
    next(stream)
    workers = [server.worker(MODEL), server.worker("other")]
    os.kill(server.process.pid, signal.SIGKILL)
    killed = time.monotonic()
    while any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in workers):
        if time.monotonic() - killed > 10:
            break
        time.sleep(0.002)
    row("kill -9 of the front to no worker left, s", "< 1", f"{time.monotonic() - killed:.3f}")
    server.process.wait()


def row(figure: str, target: str, value: str) -> None:
    print(f"{figure:<55} {target:<10} {value}", flush=True)


if __name__ == "__main__":
    main()
