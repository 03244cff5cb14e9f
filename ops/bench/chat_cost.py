"""What a short chat costs the front, beside a bare Sanic handler that answers with constants of the same size.

CPU time of the two processes, which other load hardly changes, the two taking turns. Run as a script this is the bare
server: it reads its answers as one JSON object from standard input and prints its port.
"""

import asyncio
import contextlib
import json
import socket
import statistics
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import psutil
import uvloop
from front_load import SHORT, chat
from load import post, repeat
from peers import QUIET, Setup
from report import Report
from served import Served

MOST_TIMES = 2.5
CONNECTIONS = (1, 64)
JUDGED = 64
SECONDS = 2.0
TOKENS_PER_S = 100
STREAMED = f"fake:answer=the quick brown fox,length=16,tokens_per_s={TOKENS_PER_S}"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Bare:
    """The bare server in a process of its own: ``whole`` answered at /whole, ``parts`` streamed at /stream."""

    def __init__(self, whole: str, parts: list[str]) -> None:
        self.process = psutil.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.process.stdin.write(json.dumps({"whole": json.loads(whole), "parts": parts}) + "\n")
        self.process.stdin.flush()
        self.host, self.port = "127.0.0.1", int(self.process.stdout.readline())

    def cpu_s(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def measure(setup: Setup, report: Report) -> None:
    """Whole answers of one token and streams of 16, over one connection and over 64."""
    models = {"short": {"source": SHORT}, "streamed": {"source": STREAMED}}
    settings: dict[str, Any] = {
        "logging": QUIET,
        "models": {"builtin": False, "queue": 4096, "entries": models},
        "engine": {"max_batch": 256},
    }
    asked = {"whole": chat("short", 1), "stream": {**chat("streamed", 16), "stream": True}}
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(Served(setup.scratch, settings))
        for model in models:
            ours.load(model)
        bare = Bare(_answer(ours, asked["whole"]), _events(_answer(ours, asked["stream"])))
        stack.callback(bare.close)
        loads = stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
        for kind, body in asked.items():
            for connections in CONNECTIONS:
                costs: list[tuple[float, float]] = []
                for _ in range(setup.rounds):
                    mine = _cost_us(loads, ours, "/v1/chat/completions", body, connections)
                    costs.append((mine, _cost_us(loads, bare, f"/{kind}", body, connections)))
                _report(report, kind, connections, costs)


def _cost_us(
    loads: ProcessPoolExecutor, server: Served | Bare, path: str, body: dict[str, Any], connections: int
) -> float:
    before, request = server.cpu_s(), post(server.host, path, body)
    latencies, failures = loads.submit(keep_busy, server.host, server.port, request, connections).result()
    if failures:
        raise RuntimeError(f"{failures} of {len(latencies)} requests to {path} failed")
    return 1e6 * (server.cpu_s() - before) / len(latencies)


def _report(report: Report, kind: str, connections: int, costs: list[tuple[float, float]]) -> None:
    times = statistics.median(ours / bare for ours, bare in costs)
    ours_us, bare_us = (statistics.median(column) for column in zip(*costs, strict=True))
    judged = connections == JUDGED
    what = "a whole answer" if kind == "whole" else "a streamed answer of 16 tokens"
    report.row(
        f"CPU of {what} over {connections} connection{'s' * (connections > 1)}, beside a bare handler",
        f"<= {MOST_TIMES} x" if judged else "",
        f"{ours_us:.0f} and {bare_us:.0f} us: {times:.2f} x",
        ok=times <= MOST_TIMES if judged else None,
    )


def keep_busy(host: str, port: int, request: bytes, connections: int) -> tuple[list[float], int]:
    return uvloop.run(repeat(host, port, request, connections, SECONDS))


def _answer(server: Served, body: dict[str, Any]) -> str:
    with server.request("POST", "/v1/chat/completions", body) as response:
        return response.read().decode()


def _events(streamed: str) -> list[str]:
    return [f"{event}\n\n" for event in streamed.split("\n\n") if event]


def main() -> None:
    """Serve the constants until SIGTERM."""
    from sanic import Sanic, response  # noqa: PLC0415 - the measuring process serves nothing

    told = json.loads(sys.stdin.readline())
    app = Sanic("bare", configure_logging=False)
    app.config.update({"ACCESS_LOG": False, "MOTD": False})

    @app.post("/whole")
    async def whole(_request: Any) -> Any:
        return response.json(told["whole"])

    @app.post("/stream")
    async def stream(request: Any) -> None:
        answer = await request.respond(headers=HEADERS, content_type="text/event-stream; charset=utf-8")
        for part in told["parts"]:
            await asyncio.sleep(1 / TOKENS_PER_S)
            await answer.send(part)
        await answer.eof()

    with socket.create_server(("127.0.0.1", 0), backlog=1024) as sock:
        print(sock.getsockname()[1], flush=True)
        app.run(sock=sock, single_process=True)


if __name__ == "__main__":
    main()
