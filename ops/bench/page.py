"""How soon the page and its list of requests are there, what it weighs, and whether an hour of samples makes it jerk.

Run: python ops/bench/page.py. Needs Chromium (apt-get install chromium). Exits 1 where a target is missed.
The first paint is that of a real server. The long hour comes from a server of its own that has 14,400 samples to
tell and sends 4 more per second; a trace of ten seconds says which task was the longest and which frames were dropped.
It has recorded 100,000 requests, too: the list of them is timed from the press to the frame that shows its rows.
"""

import contextlib
import functools
import http.server
import itertools
import json
import logging
import math
import shutil
import statistics
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from playwright.sync_api import Browser, Page, sync_playwright
from recording import REQUESTS, play
from served import Served

from plimsoll.http.recorder import Recorder
from plimsoll.http.request_log import RequestLog, row_of

ARGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
STATIC = Path(__file__).parents[2] / "http" / "static"
TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
GIB = 2**30
TOTAL = 64 * GIB
HOUR_S, PER_S = 3600, 4
TRACE_S = 10.0
SCREEN_HZ = 60
MODELS = [f"model-{number}" for number in range(6)]
CATEGORIES = "devtools.timeline,disabled-by-default-devtools.timeline,cc,benchmark,disabled-by-default-lighthouse"


def main() -> None:
    path = shutil.which("chromium")
    if path is None:
        sys.exit("chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGS)
        models = {"builtin": False, "entries": {name: {"source": "fake:"} for name in MODELS}}
        with tempfile.TemporaryDirectory() as folder, Served(Path(folder), {"models": models}) as served:
            paint_ms, weight = first_paint(browser, served.url)
        rows = [("first paint, median of 5", f"{paint_ms:.0f} ms", "300 ms", paint_ms < 300)]
        rows.append(("the page's files in all", f"{weight / 1000:.0f} kB", "250 kB", weight < 250_000))
        with long_hour() as url:
            opened_ms = requests_opened(browser, url)
            rows.append((f"{REQUESTS:,} requests recorded: list", f"{opened_ms:.0f} ms", "500 ms", opened_ms < 500))
            for name in ("1 h", "5 min"):
                longest_ms, busy, dropped = jank(browser, url, name)
                rows.append((f"{name} live: longest task", f"{longest_ms:.0f} ms", "50 ms", longest_ms < 50))
                rows.append((f"{name} live: main thread busy", f"{busy:.1%}", "20 %", busy < 0.2))
                rows.append((f"{name} live: frames dropped", f"{dropped:.1%}", "5 %", dropped < 0.05))
        browser.close()
    for what, figure, target, good in rows:
        print(f"{what:34} {figure:>14}   below {target:>7}   {'ok' if good else 'MISSED'}")
    sys.exit(0 if all(good for *_, good in rows) else 1)


# ---- first paint and weight


def first_paint(browser: Browser, url: str) -> tuple[float, int]:
    """Milliseconds to the first contentful paint (median of 5, nothing cached), bytes of the page's files."""
    times, weight = [], 0
    for _ in range(5):
        context = browser.new_context()
        page = context.new_page()
        sizes: list[int] = []
        page.on("requestfinished", lambda request, sizes=sizes: sizes.append(_size(request)))
        page.goto(url)
        page.wait_for_function("document.querySelector('#level').textContent.trim()")
        times.append(float(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")))
        weight = sum(sizes)
        context.close()
    return statistics.median(times), weight


def _size(request: Any) -> int:
    is_file = request.url.count("/") == 3 or "/static/" in request.url
    return request.sizes()["responseBodySize"] if is_file else 0


# ---- the list of requests


def requests_opened(browser: Browser, url: str) -> float:
    """Milliseconds from opening the list to the frame with its rows; median of 5."""
    times = []
    for _ in range(5):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(url)
        page.wait_for_function("document.querySelector('#level').textContent.trim()")
        times.append(
            page.evaluate(
                """async () => {
                  const frame = () => new Promise(requestAnimationFrame);
                  const began = performance.now();
                  document.querySelector("#requests summary").click();
                  while (!document.querySelector("#requests tbody tr")) await frame();
                  await frame();
                  return performance.now() - began;
                }"""
            )
        )
        page.close()
    return statistics.median(times)


@functools.cache
def recorded() -> RequestLog:
    """What a server remembers of so many requests."""
    logging.getLogger("plimsoll").setLevel(logging.WARNING)
    recorder = Recorder(log=RequestLog())
    for number in range(REQUESTS):
        play(recorder, number)
    return recorder.log


# ---- the long hour


class LongHour(http.server.BaseHTTPRequestHandler):
    """The page's files, an hour of samples in its history, and 4 samples per second in its feed."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/admin/events":
            self._feed()
        elif path == "/admin/history":
            only = "samples" if "only=samples" in self.path else "events"
            self._send("application/json", json.dumps({only: past(time.time()) if only == "samples" else []}).encode())
        elif path == "/admin/requests":
            limit = int(urllib.parse.parse_qs(self.path.partition("?")[2])["limit"][0])
            newest = itertools.islice(recorded().select(), limit)
            self._send("application/json", msgspec.json.encode({"requests": [row_of(one) for one in newest]}))
        else:
            file = STATIC / ("index.html" if path == "/" else path.removeprefix("/static/"))
            self._send(TYPES.get(file.suffix, "text/plain"), file.read_bytes())

    def _send(self, kind: str, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _feed(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        now = time.time()
        thresholds = {"warning": 85, "critical": 95, "emergency": 98}
        hello = {"version": "bench", "started_at": now, "now": now, "pid": 1, "thresholds": thresholds, "last_event": 0}
        with contextlib.suppress(OSError):
            self._event("hello", hello)
            for number in itertools.count():
                if number % PER_S == 0:
                    self._event("models", {"models": [model(name, number) for name in MODELS]})
                self._event("sample", live(time.time()))
                time.sleep(1 / PER_S)

    def _event(self, name: str, body: dict[str, Any]) -> None:
        self.wfile.write(f"event: {name}\ndata: {json.dumps(body)}\n\n".encode())


def percent(at: float) -> float:
    return 70 + 15 * math.sin(at / 300) + 3 * math.sin(at * 1.7) + 2 * math.sin(at * 11)


def past(now: float) -> list[list[float]]:
    """[at, percent, level, ours, used, total] of every quarter of a second."""
    times = [now - HOUR_S + step / PER_S for step in range(HOUR_S * PER_S)]
    return [[at, percent(at), 0, 20 * GIB, int(TOTAL * percent(at) / 100), TOTAL] for at in times]


def live(now: float) -> dict[str, Any]:
    used = int(TOTAL * percent(now) / 100)
    reading = {"percent": percent(now), "used": used, "total": TOTAL}
    return {
        "at": now,
        "level": "normal",
        "percent": percent(now),
        "source": "host",
        "sources": {"host": reading, "limit": reading},
        "used": used,
        "total": TOTAL,
        "front": 60 << 20,
        "models": {name: (3 << 30) + int(1e8 * math.sin(now)) for name in MODELS},
        "lag_ms": 1,
        "admission": "open",
        "status": "healthy",
        "problems": [],
        "seconds_to_critical": None,
    }


def model(name: str, number: int) -> dict[str, Any]:
    more = {"idle_s": 1.0, "idle_ttl_s": 900.0, "unload_in_s": None, "stage": None, "done_bytes": 0, "total_bytes": 0}
    figures = {"footprint_bytes": 3 << 30, "tokens_per_s": 20.0 + number % 7, "info": None, "error": None, "pid": 1}
    return {"name": name, "state": "busy", "active": 1, "queued": 0, "pinned": False, **more, **figures}


@contextlib.contextmanager
def long_hour() -> Iterator[str]:
    recorded()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), LongHour)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def jank(browser: Browser, url: str, stretch: str) -> tuple[float, float, float]:
    """The longest task in ms; which part of the main thread's time was busy, and of the frames was dropped."""
    page = browser.new_page(viewport={"width": 1440, "height": 1000})
    page.goto(url)
    page.get_by_role("button", name=stretch, exact=True).click()
    page.wait_for_function("document.querySelector('#level').textContent.trim()")
    page.wait_for_timeout(2000)  # the hour is drawn
    events = trace(browser, page)
    page.close()
    threads = {
        (event["pid"], event["tid"])
        for event in events
        if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    tasks = [
        event["dur"] / 1000
        for event in events
        if event["name"] == "RunTask" and (event["pid"], event["tid"]) in threads and "dur" in event
    ]
    states = [state for event in events if event["name"] == "PipelineReporter" and (state := _state(event))]
    assert tasks, "the trace has no tasks: this Chromium names them otherwise"
    assert states, "the trace has no frames: this Chromium names them otherwise"
    return max(tasks), sum(tasks) / 1000 / TRACE_S, states.count("STATE_DROPPED") / (TRACE_S * SCREEN_HZ)


def _state(event: dict[str, Any]) -> str | None:
    """What became of a frame; the key was another one in older versions."""
    told = event.get("args", {})
    state: str | None = (told.get("frame_reporter") or told.get("chrome_frame_reporter") or {}).get("state")
    return state


def trace(browser: Browser, page: Page) -> list[dict[str, Any]]:
    browser.start_tracing(page=page, categories=CATEGORIES.split(","))
    page.wait_for_timeout(1000 * TRACE_S)
    data: dict[str, Any] = json.loads(browser.stop_tracing())
    events: list[dict[str, Any]] = data["traceEvents"]
    return events


if __name__ == "__main__":
    main()
