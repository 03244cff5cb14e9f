"""How much load the front process carries, with the fake engine: streams, short chats, /health under load, bursts."""

import asyncio
import contextlib
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import uvloop
from load import Answer, get, percentile, post, repeat, stream
from peers import QUIET, MlxLmServer, Plimsoll, Setup
from report import Report
from served import Served

ENDLESS = "fake:answer=the quick brown fox,length=100000000,context=1000000000"
PACED = f"{ENDLESS},tokens_per_s=50"
SHORT = "fake:answer=yes,length=1"
COUNTS = (1, 4, 16, 64, 256)
SECONDS = 4.0
BURST = 256


def measure(setup: Setup, report: Report) -> None:
    """Everything here runs on loopback with the load in a process of its own."""
    entries = {name: {"source": source} for name, source in (("endless", ENDLESS), ("paced", PACED), ("short", SHORT))}
    settings: dict[str, Any] = {
        "logging": QUIET,
        "models": {"builtin": False, "queue": 4096, "entries": entries},
        "engine": {"max_batch": 256},
    }
    with (
        Served(setup.scratch, settings) as server,
        ProcessPoolExecutor(2, mp_context=get_context("spawn")) as loads,
    ):
        for model in entries:
            server.load(model)
        _tokens(server, loads, report)
        _chats(server, loads, report)
    _burst(setup, report)
    _health(setup, report)


def _tokens(server: Served, loads: ProcessPoolExecutor, report: Report) -> None:
    place = server.host, server.port
    loads.submit(together, *place, chat("endless", 1000), 2).result()
    for count in COUNTS:
        each = int(250_000 * SECONDS / count)
        cpu_s, answers, took_s = _timed(server, loads, chat("endless", each), count)
        tokens, failed = sum(one.tokens for one in answers), sum(bool(one.error) for one in answers)
        report.row(
            f"front, {count} streams as fast as they go",
            ">= 60,000/s" if count == 16 else "",
            f"{tokens / took_s:,.0f} tokens/s, {1e6 * cpu_s / tokens:.2f} us CPU a token, {failed} failed",
            ok=tokens / took_s >= 60_000 and not failed if count == 16 else None,
        )
    for count in COUNTS:
        cpu_s, answers, took_s = _timed(server, loads, chat("paced", int(50 * SECONDS)), count)
        tokens, failed = sum(one.tokens for one in answers), sum(bool(one.error) for one in answers)
        report.point("front: us of CPU per token", "50 tokens/s a stream", count, 1e6 * cpu_s / tokens)
        report.row(
            f"front, {count} streams of 50 tokens/s, an event a token",
            "",
            f"{tokens / took_s:,.0f}/s, {1e6 * cpu_s / tokens:.1f} us CPU a token, {cpu_s / took_s:.0%} of a core",
            ok=None if not failed else False,
        )


def _timed(
    server: Served, loads: ProcessPoolExecutor, body: dict[str, Any], count: int
) -> tuple[float, list[Answer], float]:
    before, began = server.cpu_s(), time.perf_counter()
    answers = loads.submit(together, server.host, server.port, body, count).result()
    return server.cpu_s() - before, answers, time.perf_counter() - began


def _chats(server: Served, loads: ProcessPoolExecutor, report: Report) -> None:
    before = server.cpu_s()
    request = post(server.host, "/v1/chat/completions", chat("short", 1))
    latencies, failures = loads.submit(hammer, server.host, server.port, request, 64, SECONDS).result()
    rate, cpu_s = len(latencies) / SECONDS, server.cpu_s() - before
    report.row(
        "front, short chats over 64 connections",
        ">= 2,500/s",
        f"{rate:,.0f}/s, {1e6 * cpu_s / len(latencies):.0f} us CPU a chat, {figures(latencies)}, {failures} failed",
        ok=rate >= 2500 and not failures,
    )


def _burst(setup: Setup, report: Report) -> None:
    """Connections at once that each want a short answer of the real model."""
    ours, theirs = Plimsoll(setup, models={"queue": 1024}), MlxLmServer(setup.dense)
    for peer in (ours, theirs):
        with contextlib.closing(peer):
            body = {**chat(peer.model, 1), "temperature": 0}
            together(peer.host, peer.port, body, 1)
            answers = together(peer.host, peer.port, body, BURST)
        failed = [one.error for one in answers if one.error or one.tokens != 1]
        report.row(
            f"{peer.name}: a burst of {BURST} connections",
            "none lost" if peer is ours else "",
            f"{len(failed)} lost" + (f" ({failed[0][:40]})" if failed else ""),
            ok=not failed if peer is ours else None,
        )


def _health(setup: Setup, report: Report) -> None:
    """/health while 16 answers of the real model stream."""
    ours = Plimsoll(setup)
    with contextlib.closing(ours), ProcessPoolExecutor(2, mp_context=get_context("spawn")) as loads:
        body = {**chat(ours.model, 100), "temperature": 0}
        together(ours.host, ours.port, body, 1)
        running = loads.submit(together, ours.host, ours.port, body, 16)
        latencies, failures = loads.submit(paced, ours.host, ours.port, get(ours.host, "/health"), 5 * SECONDS).result()
        running.result()
    p99 = percentile(latencies, 0.99)
    report.row(
        "/health under 16 streams of the built-in model",
        "p99 < 10 ms",
        f"{figures(latencies)} of {len(latencies)}, {failures} failed",
        ok=p99 < 0.010 and not failures,
    )


def chat(model: str, max_tokens: int) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "go on"}], "max_tokens": max_tokens}


def together(host: str, port: int, body: dict[str, Any], count: int) -> list[Answer]:
    async def run() -> list[Answer]:
        return list(await asyncio.gather(*(stream(host, port, body, timed=False) for _ in range(count))))

    return uvloop.run(run())


def hammer(host: str, port: int, request: bytes, connections: int, seconds: float) -> tuple[list[float], int]:
    return uvloop.run(repeat(host, port, request, connections, seconds))


def paced(host: str, port: int, request: bytes, seconds: float) -> tuple[list[float], int]:
    """One look every 20 ms, as often as the keenest prober looks and without a load of its own."""
    return uvloop.run(repeat(host, port, request, 1, seconds, pause_s=0.02))


def figures(latencies: list[float]) -> str:
    p50, p99 = (1e3 * percentile(latencies, share) for share in (0.5, 0.99))
    return f"p50 {p50:.2f} ms, p99 {p99:.2f} ms"
