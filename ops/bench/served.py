"""A ``plimsoll serve`` process on a free port, for benchmarks that treat it roughly.

A benchmark that is told to end (SIGTERM, SIGHUP) ends as if Ctrl-C were pressed: what it started ends with it.
"""

import contextlib
import http.client
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

for _number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(_number, lambda number, _frame: sys.exit(128 + number))


class Served:
    """The server with ``settings`` over its defaults; its log and black box are in ``folder``.

    ``arguments`` are Python's own, ``options`` those of ``serve``.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *arguments: str, options: Sequence[str] = ()) -> None:
        path = folder / "bench.yaml"
        logging = {"file": str(folder / "plimsoll.log"), "blackbox": str(folder / "blackbox.sqlite")}
        server = {"responses_folder": "none", **settings.get("server", {}), "port": 0}
        path.write_text(json.dumps({"logging": logging, **settings, "server": server}))  # JSON is YAML
        self.log = folder / "plimsoll.log"
        self.process = subprocess.Popen(
            [sys.executable, *arguments, "-m", "plimsoll", "serve", "--config", path, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout
        try:
            found = re.search(r"http://([\d.]+):(\d+)", self.process.stdout.readline())
            assert found, "the server did not start"
        except BaseException:
            self.process.kill()
            raise
        self.url, self.host, self.port = found[0], found[1], int(found[2])
        self.front = psutil.Process(self.process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()

    @contextlib.contextmanager
    def request(
        self, method: str, path: str, body: Any = None, *, timeout_s: float = 30.0
    ) -> Iterator[http.client.HTTPResponse]:
        """One request on a connection of its own; ``timeout_s`` is the longest silence."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json", "Connection": "close"})
            with connection.getresponse() as response:
                yield response
        finally:
            connection.close()

    def models(self) -> list[dict[str, Any]]:
        """The living models, as /admin/models has them."""
        return list(self._json("/admin/models")["models"])

    def health(self) -> dict[str, Any]:
        return self._json("/health")

    def load(self, model: str) -> None:
        with self.request("POST", f"/admin/models/{model}/load", timeout_s=300) as response:
            response.read()

    def unload(self, model: str) -> None:
        with self.request("POST", f"/admin/models/{model}/unload", {"grace_s": 0}) as response:
            response.read()

    def cpu_s(self) -> float:
        """CPU time of the front alone."""
        times = self.front.cpu_times()
        return float(times.user + times.system)

    def memory_mb(self, kind: str = "rss") -> float:
        """Memory of the front and all workers; ``pss`` counts what they share once."""
        processes = [self.front, *self.workers()]
        return sum(float(getattr(process.memory_full_info(), kind)) for process in processes) / 1e6

    def workers(self) -> list[psutil.Process]:
        """The front's children that still run."""
        children = self.front.children(recursive=True)
        return [one for one in children if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(60)

    def _json(self, path: str) -> dict[str, Any]:
        with self.request("GET", path) as response:
            found: dict[str, Any] = json.load(response)
            return found
