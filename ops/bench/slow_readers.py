"""What clients that read slowly cost the others: 1,000 connections to a fake engine, 200 of them reading 1 kB/s.

Run: python ops/bench/slow_readers.py (two minutes). Prints the others' time to first token without and with them, in
turn (A B C A B C), and how large the front gets. B has 200 that read as fast as they can: what the load alone costs.
Loopback only; client and server share the machine.
"""

import asyncio
import contextlib
import json
import os
import platform
import random
import re
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

OTHERS, SLOW = 800, 200
ROUNDS = 2
KINDS = ALONE, FAST, SLOWLY = "", "fast", "slow"
MEASURED_S = 10.0
# Each of the others asks once in this time, at a moment of its own: 100 requests per second in all.
EVERY_S = 8.0
# 1,000 tokens/s for all 200, as a fast machine makes them, of 450 bytes on the wire: twice what a slow reader takes.
# The first 20 are so large that all buffers are full at once.
TALK = f"fake:tokens_per_s=5,length=100000,context=1000000,answer={('x' * 20_000 + ' ') * 20}{('x' * 250 + ' ') * 2000}"
READ_BYTES, READ_EVERY_S = 1100, 1.0
QUICK = "fake:tokens_per_s=100,length=4,answer=la"
SETTINGS = {
    "server": {"port": 0, "responses_folder": "none"},
    "limits": {"connections": OTHERS + SLOW + 50, "header_time": "5m", "idle": "5m"},
    "models": {"builtin": False, "queue": 5000, "entries": {"talk": {"source": TALK}, "quick": {"source": QUICK}}},
    "engine": {"max_batch": 256},
    "logging": {"level": "warning", "file": "none", "blackbox": "none"},
}


def main() -> None:
    """Measure and print."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as name, _server(Path(name)) as (process, port):
        asyncio.run(_measure(psutil.Process(process.pid), port))


async def _measure(front: psutil.Process, port: int) -> None:
    await asyncio.gather(*(_ask(port, model) for model in ("quick", "talk")))
    results: dict[str, list[float]] = {kind: [] for kind in KINDS}
    print(f"{'':<28} {'p50 ms':>8} {'p99 ms':>8} {'answers':>8} {'front MiB':>10}")
    async with _others(port) as ask_all:
        for _ in range(ROUNDS):
            for kind in KINDS:
                async with _readers(port, kind):
                    times_ms = sorted(1000 * one for one in await ask_all())
                    rss = front.memory_info().rss / 2**20
                p99 = times_ms[int(0.99 * len(times_ms))]
                results[kind].append(p99)
                what = f"{OTHERS} and {SLOW} {kind}" if kind else f"{OTHERS}"
                print(f"{what:<28} {statistics.median(times_ms):>8.1f} {p99:>8.1f} {len(times_ms):>8} {rss:>10.0f}")
    for base, name in ((ALONE, "without them"), (FAST, "with as many that read fast")):
        growths = [100 * (b / a - 1) for a, b in zip(results[base], results[SLOWLY], strict=True)]
        each = ", ".join(f"{one:+.0f} %" for one in growths)
        print(f"growth of the p99 against {name}: {statistics.median(growths):+.0f} % (target < 20; {each})")


@contextlib.asynccontextmanager
async def _others(port: int) -> AsyncIterator:
    """Opens the others' connections; gives a function that lets all of them ask for ``MEASURED_S``."""
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(OTHERS)]
    try:

        async def ask_all() -> list[float]:
            times = await asyncio.gather(*(_ask_again(reader, writer) for reader, writer in connections))
            return [one for some in times for one in some]

        yield ask_all
    finally:
        for _, writer in connections:
            writer.close()


async def _ask_again(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> list[float]:
    loop, times = asyncio.get_running_loop(), []
    end = loop.time() + MEASURED_S
    at = loop.time() + random.uniform(0, EVERY_S)
    while at < end:
        await asyncio.sleep(at - loop.time())
        began = time.perf_counter()
        writer.write(_request("quick"))
        await reader.readuntil(b'"content":"la')
        times.append(time.perf_counter() - began)
        await reader.readuntil(b"\r\n0\r\n\r\n")
        at += EVERY_S
    return times


@contextlib.asynccontextmanager
async def _readers(port: int, kind: str) -> AsyncIterator[None]:
    """All of them there, and where they are slow with full buffers."""
    tasks = [asyncio.create_task(_read(port, slowly=kind == SLOWLY)) for _ in range(SLOW if kind else 0)]
    await asyncio.sleep(6)
    try:
        yield
        assert not any(task.done() for task in tasks), "a reader was cut off"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(1)


async def _read(port: int, *, slowly: bool) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        if slowly:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        await loop.sock_sendall(sock, _request("talk"))
        while await loop.sock_recv(sock, READ_BYTES if slowly else 65536):
            if slowly:
                await asyncio.sleep(READ_EVERY_S)


async def _ask(port: int, model: str) -> None:
    """Until its first token, so that the model is loaded."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_request(model))
    await reader.readuntil(b'"content":')
    writer.close()


def _request(model: str) -> bytes:
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    raw = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
    return f"{head}{len(raw)}\r\n\r\n".encode() + raw


@contextlib.contextmanager
def _server(folder: Path):  # noqa: ANN202 - the process and its port
    path = folder / "bench.yaml"
    path.write_text(json.dumps(SETTINGS))
    command = [sys.executable, "-m", "plimsoll", "serve", "--config", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    found = re.search(r"http://[\d.]+:(\d+)", process.stdout.readline())
    assert found, "the server did not start"
    try:
        yield process, int(found[1])
    finally:
        process.terminate()
        process.wait(60)


if __name__ == "__main__":
    main()
