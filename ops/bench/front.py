"""What the front end can carry, on the fake engine: tokens over streams, short chats, /health under load, bursts.

Run: python ops/bench/front.py [--seconds 5] [--streams 16,...]. Loopback only; the load is a process of its own.
"""

import argparse
import asyncio
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import uvloop
from load import Answer, get, percentile, post, repeat, stream
from served import Served

ENDLESS = "fake:answer=the quick brown fox,length=100000000,context=1000000000"
SHORT = "fake:answer=yes,length=1"
SLOW = "fake:answer=la,length=100000000,context=1000000000,tokens_per_s=50"


def settings() -> dict[str, Any]:
    entries = {name: {"source": source} for name, source in (("endless", ENDLESS), ("short", SHORT), ("slow", SLOW))}
    return {"models": {"builtin": False, "queue": 4096, "entries": entries}, "engine": {"max_batch": 256}}


def chat(model: str, max_tokens: int) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "go on"}], "max_tokens": max_tokens}


def together(host: str, port: int, body: dict[str, Any], count: int, *, timed: bool) -> list[Answer]:
    async def run() -> list[Answer]:
        return list(await asyncio.gather(*(stream(host, port, body, timed=timed) for _ in range(count))))

    return uvloop.run(run())


def hammer(host: str, port: int, request: bytes, connections: int, seconds: float) -> tuple[list[float], int]:
    return uvloop.run(repeat(host, port, request, connections, seconds))


def figures(latencies: list[float]) -> str:
    p50, p99 = (1e3 * percentile(latencies, share) for share in (0.5, 0.99))
    return f"p50 {p50:.2f} ms, p99 {p99:.2f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--streams", default="1,4,16,64,256")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        Served(Path(folder), settings()) as server,
        ProcessPoolExecutor(2, mp_context=get_context("spawn")) as loads,
    ):
        place = server.host, server.port
        for model in ("endless", "short", "slow"):
            server.post(f"/admin/models/{model}/load")
        loads.submit(together, *place, chat("endless", 1000), 2, timed=False).result()
        for count in map(int, options.streams.split(",")):
            each = int(60_000 * options.seconds / count)
            before, began = server.cpu_s(), time.perf_counter()
            answers = loads.submit(together, *place, chat("endless", each), count, timed=False).result()
            took_s, cpu_s = time.perf_counter() - began, server.cpu_s() - before
            tokens, failed = sum(one.tokens for one in answers), [one.error for one in answers if one.error]
            rate, cost = f"{tokens / took_s:,.0f} tokens/s", f"{1e6 * cpu_s / tokens:.2f} us of the front's CPU a token"
            print(f"{count:>4} streams: {rate}, {cost}, {len(failed)} failed {failed[:1]}", flush=True)
        before = server.cpu_s()
        request = post(server.host, "/v1/chat/completions", chat("short", 1))
        latencies, failures = loads.submit(hammer, *place, request, 64, options.seconds).result()
        cpu_s = server.cpu_s() - before
        rate, cost = f"{len(latencies) / options.seconds:,.0f} chats/s", f"{1e6 * cpu_s / len(latencies):.0f} us a chat"
        print(f"short chats over 64 connections: {rate}, front {cost}, {figures(latencies)}, {failures} failed")
        running = loads.submit(together, *place, chat("slow", int(50 * options.seconds)), 16, timed=True)
        latencies, failures = loads.submit(hammer, *place, get(server.host, "/health"), 1, options.seconds).result()
        running.result()
        print(f"/health under 16 streams: {figures(latencies)}, {failures} failed")
        answers = loads.submit(together, *place, chat("short", 1), 256, timed=True).result()
        failed = [one.error for one in answers if one.error or one.tokens != 1]
        print(f"burst of 256 connections: {len(failed)} failed {failed[:1]}")


if __name__ == "__main__":
    main()
