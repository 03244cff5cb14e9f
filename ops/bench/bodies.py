"""What a crowd of large request bodies, and one of idle connections, does to the front and to everybody else.

``python ops/bench/bodies.py [--bodies 150] [--mib 15] [--limit-mib 1024]`` runs the server in a control group of its
own; where none can be made it says so and goes on without (then ``memory.limit`` is set, which no kernel enforces).
Bodies come all at once: whole, and then without their last byte. Meanwhile a stream runs, ``/health/live`` is asked ten
times a second and a small request five times. Then 1,000 connections idle. Exits with 1 where a promise was broken.
Loopback; clients and server share the machine, the crowd at a lower priority.
"""

import argparse
import contextlib
import http.client
import json
import multiprocessing
import os
import platform
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from control_group import ControlGroup, NoGroup
from served import Served

MIB = 2**20
FRONT_MOST_MIB, LIVE_MOST_S, GROWTH_MOST_MIB = 250, 0.5, 30
# A stream does not notice: its tokens come every 50 ms, and this is the longest silence that is not felt.
GAP_MOST_S = 0.5
SMALL = {"model": "quick", "messages": [{"role": "user", "content": "hi"}]}
ENTRIES = {
    "talk": {"source": "fake:tokens_per_s=20,length=100000,context=1000000,answer=la"},
    "quick": {"source": "fake:tokens_per_s=100,length=2"},
}
IDLE = 1000
SHORT: list[str] = []


def line(figure: str, value: str, target: str = "", *, ok: bool | None = None) -> None:
    """One line of the table; ``ok`` None is a figure without a target."""
    if ok is False:
        SHORT.append(figure)
    verdict = "" if ok is None else "ok" if ok else "FALLS SHORT"
    print(f"{figure:<52} {value:<44} {target:<12} {verdict}".rstrip(), flush=True)


class Watch:
    """Threads that look at the server while something is done to it."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._end = threading.Event()
        self._begun_s = time.monotonic()
        self.live_s: list[float] = []
        # How long the slowest took, and how many seconds after the begin it was asked.
        self.slowest = (0.0, 0.0)
        self.small_s: list[float] = []
        self.failed: Counter[str] = Counter()
        self.front_mib = 0.0
        self._threads = [
            threading.Thread(target=self._every, args=args, daemon=True)
            for args in ((0.1, self._ask_live), (0.2, self._ask_small), (0.02, self._look))
        ]

    @contextlib.contextmanager
    def running(self) -> Iterator["Watch"]:
        """From the first look to the last."""
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._end.set()
            for thread in self._threads:
                thread.join()

    def _every(self, seconds: float, look: Callable[[], None]) -> None:
        while not self._end.wait(seconds):
            try:
                look()
            except (OSError, http.client.HTTPException, psutil.Error, ValueError) as error:
                self.failed[f"{look.__name__}: {error}"] += 1

    def _ask_live(self) -> None:
        at_s = time.monotonic() - self._begun_s
        self.live_s.append(self._timed("GET", "/health/live"))
        self.slowest = max(self.slowest, (self.live_s[-1], at_s))

    def _ask_small(self) -> None:
        self.small_s.append(self._timed("POST", "/v1/chat/completions", SMALL))

    def _timed(self, method: str, path: str, body: Any = None) -> float:
        started = time.monotonic()
        with self._served.request(method, path, body) as response:
            response.read()
            if response.status != 200:
                raise ValueError(f"status {response.status}")
        return time.monotonic() - started

    def _look(self) -> None:
        self.front_mib = max(self.front_mib, self._served.front.memory_info().rss / MIB)


class Stream:
    """One answer that runs all the time; ``gap_s`` is its longest silence since ``reset``."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._last_s = time.monotonic()
        self.gap_s = 0.0
        self.ended = ""
        threading.Thread(target=self._read, daemon=True).start()

    def reset(self) -> None:
        self.gap_s = 0.0

    def _read(self) -> None:
        body = SMALL | {"model": "talk", "stream": True, "max_tokens": 1_000_000}
        try:
            with self._served.request("POST", "/v1/chat/completions", body, timeout_s=60.0) as response:
                self._last_s = time.monotonic()
                while response.readline():
                    now_s = time.monotonic()
                    self.gap_s, self._last_s = max(self.gap_s, now_s - self._last_s), now_s
        except OSError as error:
            self.ended = str(error)
        self.ended = self.ended or "it ended"


def crowd(port: int, count: int, size: int, *, whole: bool, results: "multiprocessing.Queue[list[str]]") -> None:
    """``count`` clients at once; puts the first line of each answer. Runs in a process of its own."""
    os.nice(10)  # clients of other machines would not take the server's CPU
    padding = b"x" * (size - len(json.dumps(SMALL | {"user": ""})))
    body = json.dumps(SMALL | {"user": "@"}).encode().replace(b"@", padding)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    answers: list[str] = []

    def one() -> None:
        answer = b""
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=90) as sock:
                with contextlib.suppress(OSError):
                    sock.sendall(head % len(body))
                    sock.sendall(body if whole else body[:-1])
                while block := sock.recv(65536):
                    answer += block
        except OSError as error:
            answer = answer or str(error).encode()
        answers.append(answer.partition(b"\r\n")[0].decode(errors="replace"))

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put(answers)


def measure_quiet(served: Served, stream: Stream) -> None:
    """What this machine needs with nothing but the stream going on."""
    stream.reset()
    with Watch(served).running() as watch:
        time.sleep(5)
    print("\nquiet")
    line("slowest /health/live", f"{max(watch.live_s, default=99.0) * 1000:.0f} ms of {len(watch.live_s)}")
    line("slowest small request", f"{max(watch.small_s, default=99.0) * 1000:.0f} ms of {len(watch.small_s)}")
    line("the stream's longest silence", f"{stream.gap_s * 1000:.0f} ms {stream.ended}")


def measure_bodies(served: Served, stream: Stream, options: argparse.Namespace, *, whole: bool) -> None:
    """One crowd of bodies."""
    before_mib = served.front.memory_info().rss / MIB
    cpu_before_s = served.cpu_s()
    stream.reset()
    watch = Watch(served)
    started = time.monotonic()
    with watch.running():
        results: multiprocessing.Queue[list[str]] = multiprocessing.Queue()
        child = multiprocessing.Process(
            target=crowd,
            args=(served.port, options.bodies, options.mib * MIB),
            kwargs={"whole": whole, "results": results},
        )
        child.start()
        answers = Counter(results.get(timeout=240))
        child.join()
        took_s = time.monotonic() - started
        cpu_s = served.cpu_s() - cpu_before_s if served.process.poll() is None else 0.0
        time.sleep(3)
    after_mib = served.front.memory_info().rss / MIB if served.process.poll() is None else 0.0
    kind = "whole" if whole else "without their last byte"
    print(f"\n{options.bodies} bodies of {options.mib} MiB at once, {kind}")
    line("answered", ", ".join(f"{count} x {text}" for text, count in answers.items()) + f" in {took_s:.1f} s")
    line("CPU time of the front, machine load", f"{cpu_s:.1f} s, {os.getloadavg()[0]:.1f}")
    line("the front lives", str(alive := served.process.poll() is None), "True", ok=alive)
    most = f"< {FRONT_MOST_MIB} MiB"
    line("the front's memory, before and most", f"{before_mib:.0f}, {watch.front_mib:.0f} MiB", most, ok=_below(watch))
    kept = after_mib - before_mib
    line("kept 3 s afterwards", f"{kept:.0f} MiB", f"< {GROWTH_MOST_MIB} MiB", ok=kept < GROWTH_MOST_MIB)
    slowest = max(watch.live_s, default=99.0)
    value = f"{slowest * 1000:.0f} ms of {len(watch.live_s)}, asked after {watch.slowest[1]:.1f} s"
    line("slowest /health/live", value, f"< {LIVE_MOST_S:g} s", ok=slowest < LIVE_MOST_S)
    line("slowest small request", f"{max(watch.small_s, default=99.0) * 1000:.0f} ms of {len(watch.small_s)}")
    value = f"{stream.gap_s * 1000:.0f} ms {stream.ended}"
    line(
        "the stream's longest silence", value, f"< {GAP_MOST_S:g} s", ok=stream.gap_s < GAP_MOST_S and not stream.ended
    )
    line("asked in vain", str(dict(watch.failed) or "nothing"), "nothing", ok=not watch.failed)


def _below(watch: Watch) -> bool:
    return watch.front_mib < FRONT_MOST_MIB


def measure_idle(served: Served, stream: Stream) -> None:
    """A thousand connections that ask nothing."""
    stream.reset()
    with contextlib.ExitStack() as stack:
        for _ in range(IDLE):
            stack.enter_context(socket.create_connection((served.host, served.port), timeout=30))
        print(f"\n{IDLE} idle connections")
        for moment, wait_s in (("at once", 0.0), ("a second later", 1.2)):
            time.sleep(wait_s)
            for path in ("/health", "/v1/models"):
                started = time.monotonic()
                try:
                    with served.request("GET", path) as response:
                        response.read()
                        status = response.status
                except OSError as error:
                    status = 0
                    print(error)
                took_s = time.monotonic() - started
                # In the first second nobody is taken to be idle, so a client waits for the rest of it.
                most_s = LIVE_MOST_S + (1.0 if path == "/v1/models" and not wait_s else 0.0)
                ok = status == 200 and took_s < most_s
                line(f"{path}, {moment}", f"{status} in {took_s * 1000:.0f} ms", f"< {most_s:g} s", ok=ok)
    value = f"{stream.gap_s * 1000:.0f} ms"
    line("the stream's longest silence", value, f"< {GAP_MOST_S:g} s", ok=stream.gap_s < GAP_MOST_S)


@contextlib.contextmanager
def grouped(limit_bytes: int) -> Iterator[ControlGroup | None]:
    """A control group for the server; None, and a sentence, where none can be made."""
    with contextlib.ExitStack() as stack:
        group = None
        try:
            group = stack.enter_context(ControlGroup(limit_bytes, ("server",)))
        except NoGroup as error:
            print(f"without a control group: {error}")
        yield group


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bodies", type=int, default=150)
    parser.add_argument("--mib", type=int, default=15)
    parser.add_argument("--limit-mib", type=int, default=1024)
    options = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    settings: dict[str, Any] = {"models": {"builtin": False, "entries": ENTRIES}}
    with tempfile.TemporaryDirectory(prefix="plimsoll-bodies-") as folder, grouped(options.limit_mib * MIB) as group:
        if group is None:
            settings["memory"] = {"limit": f"{options.limit_mib}MiB"}
        with group.inside("server") if group else contextlib.nullcontext():
            served = Served(Path(folder), settings)
        with served:
            for model in ENTRIES:
                served.load(model)
            stream = Stream(served)
            time.sleep(2)
            measure_quiet(served, stream)
            for whole in (True, False):
                if served.process.poll() is None:
                    measure_bodies(served, stream, options, whole=whole)
            if served.process.poll() is None:
                measure_idle(served, stream)
            if group is not None:
                kills = group.oom_kills("server")
                line("\nkilled by the kernel in the group", str(kills), "0", ok=not kills)
            if served.process.poll() is None:
                served.stop()
    print(
        f"load {os.getloadavg()[0]:.1f}; " + ("every promise was kept" if not SHORT else f"short: {', '.join(SHORT)}")
    )
    return 1 if SHORT else 0


if __name__ == "__main__":
    sys.exit(main())
