"""Random faults under load: what a server that serves several models survives, and how soon it serves again.

Run: python ops/bench/faults.py [--faults 200] [--minutes 10] [--streams 16] [--seed 1] [--builtin]. Loopback only.
Fake models under a memory limit of their own, a real server, real signals. Exits with 1 when a promise was broken.
"""

import argparse
import http.client
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from served import Served

LIMIT_MIB = 1100
BUILTIN = "smollm2-135m"
MODELS = {
    **{name: {"source": "fake:tokens_per_s=50,answer=la,length=400,hold=40MiB"} for name in ("a", "b", "c")},
    "slow": {"source": "fake:load_s=2,tokens_per_s=100,answer=la,length=400,hold=40MiB"},
    "balloon": {"source": "fake:grow=4MiB,context=100000"},
}
SETTINGS: dict[str, Any] = {
    "server": {"keepalive": "1s"},
    "memory": {"limit": f"{LIMIT_MIB}MiB", "critical_grace": "1s", "clear_after": "1s"},
    "engine": {"hang_after": "2s", "stop_grace": "500ms"},
}
# No request takes longer than a hang on each of its two tries, an emergency and the loads in between.
REQUEST_S = 60.0
SERVES_AGAIN_S = 10.0
LIVE_S = 5.0
SIGNALS = {"kill -9": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP, "SIGSEGV": signal.SIGSEGV}
ORDERS = {"MemoryError": "raise MemoryError", "hang": "hang"}
BALLOONS = {"balloon to warning": 88, "balloon to critical": 96.5, "balloon to emergency": 101}
# A connection that is just closing; the threads of two pools that are made when they are first needed.
MAY_GROW = {"fds": 3, "threads": 8}
KINDS = (*SIGNALS, *ORDERS, "slow load", *BALLOONS)


@dataclass
class Tally:
    """What the clients saw; ``broken`` holds sentences about promises that were not kept."""

    endings: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    slowest_live_s: float = 0.0
    slowest_request_s: float = 0.0

    def end(self, how: str, seconds: float) -> None:
        self.endings[how] += 1
        self.slowest_request_s = max(self.slowest_request_s, seconds)


class Client:
    """One thread's requests, each followed to its one ending."""

    def __init__(self, served: Served, tally: Tally) -> None:
        self._served, self._tally = served, tally

    def chat(self, model: str, text: str = "go on", max_tokens: int = 50) -> str:
        """How it ended: "finished", "error event", or the error's status and code."""
        began = time.monotonic()
        try:
            how = self._chat(model, text, max_tokens, began)
        except (OSError, http.client.HTTPException) as error:
            how = f"broken connection ({type(error).__name__})"
            self._tally.broken.append(f"a request to {model} ended with {error!r}")
        self._tally.end(how, time.monotonic() - began)
        return how

    def _chat(self, model: str, text: str, max_tokens: int, began: float) -> str:
        messages = [{"role": "user", "content": text}]
        body = {"model": model, "stream": True, "max_tokens": max_tokens, "messages": messages}
        with self._served.request("POST", "/v1/chat/completions", body, timeout_s=LIVE_S * 2) as response:
            if response.status != 200:
                return f"{response.status} {json.loads(response.read())['error']['code']}"
            endings = []
            for raw in response:
                if time.monotonic() - began > REQUEST_S:
                    self._tally.broken.append(f"a request to {model} did not end in {REQUEST_S:.0f} s")
                    return "no ending"
                if raw.startswith(b"data: {"):
                    chunk = json.loads(raw[6:])
                    if "error" in chunk:
                        endings.append("error event")
                    elif chunk["choices"] and chunk["choices"][0]["finish_reason"]:
                        endings.append("finished")
        if len(endings) != 1:
            self._tally.broken.append(f"a stream of {model} had {len(endings)} endings: {endings}")
        return endings[0] if endings else "no ending"


class Trouble:
    """Makes one fault after the other."""

    def __init__(self, served: Served, tally: Tally, chance: random.Random, victims: list[str]) -> None:
        self._served, self._tally, self._chance, self._victims = served, tally, chance, victims
        self._client = Client(served, tally)

    def make(self, kind: str) -> None:
        self._tally.faults[kind] += 1
        model = self._chance.choice(self._victims)
        if kind in SIGNALS:
            pids = [one["pid"] for one in self._served.models() if one["pid"]]
            if pids:
                _signal(self._chance.choice(pids), SIGNALS[kind])
        elif kind in ORDERS:
            self._client.chat("a" if model == BUILTIN else model, ORDERS[kind])
        elif kind == "slow load":
            self._served.unload("slow")
            self._client.chat("slow")
        else:
            used = self._served.health()["memory"]["used_percent"]
            words = max(1, round((BALLOONS[kind] - used) / 100 * LIMIT_MIB / 4))
            self._client.chat("balloon", "x " * words, max_tokens=words)
            self._served.unload("balloon")


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def main() -> int:
    """Run, print one line per figure, and say what was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--again", type=float, default=SERVES_AGAIN_S, help="seconds from the last fault to service")
    parser.add_argument("--builtin", action="store_true", help="the built-in chat model too (needs a larger limit)")
    options = parser.parse_args()
    settings = {**SETTINGS, "models": {"builtin": options.builtin, "entries": MODELS}}
    if options.builtin:
        settings["memory"]["limit"] = f"{LIMIT_MIB + 900}MiB"
    with tempfile.TemporaryDirectory() as folder, Served(Path(folder), settings) as served:
        tally = Tally()
        run(served, tally, options)
        finish(served, tally)
    for line in tally.broken[:20]:
        print(f"BROKEN: {line}")
    print("every promise was kept" if not tally.broken else f"{len(tally.broken)} promises were broken")
    return 1 if tally.broken else 0


def run(served: Served, tally: Tally, options: argparse.Namespace) -> None:
    """Faults under load, then the way back to normal and the comparison with before."""
    victims = [*(name for name in MODELS if name != "balloon"), *([BUILTIN] if options.builtin else [])]
    serve_again(served, tally, victims, options.again)
    before = settled(served)
    stop = threading.Event()
    seeds = itertools.count(options.seed * 1000)

    def stream() -> None:
        chance, client = random.Random(next(seeds)), Client(served, tally)
        while not stop.is_set():
            client.chat(chance.choice(victims), max_tokens=chance.choice((1, 20, 100)))

    def probe() -> None:
        while not stop.wait(0.25):
            began = time.monotonic()
            try:
                with served.request("GET", "/health/live", timeout_s=LIVE_S) as response:
                    assert response.status == 200
            except (OSError, http.client.HTTPException, AssertionError) as error:
                tally.broken.append(f"/health/live failed: {error!r}")
            tally.slowest_live_s = max(tally.slowest_live_s, time.monotonic() - began)

    threads = [threading.Thread(target=stream, daemon=True) for _ in range(options.streams)]
    threads.append(threading.Thread(target=probe, daemon=True))
    for thread in threads:
        thread.start()
    # Begun on time and side by side, for some take seconds: a hang, a slow load.
    chance, every_s = random.Random(options.seed), options.minutes * 60 / options.faults
    began = time.monotonic()
    makers = []
    for number, kind in enumerate(kinds(chance, options.faults)):
        time.sleep(max(0.0, began + number * every_s - time.monotonic()))
        trouble = Trouble(served, tally, random.Random(chance.random()), victims)
        makers.append(threading.Thread(target=trouble.make, args=(kind,), daemon=True))
        makers[-1].start()
    for thread in makers:
        thread.join(REQUEST_S)
    took_s = serve_again(served, tally, victims, options.again)
    stop.set()
    for thread in threads:
        thread.join(REQUEST_S)
    row("faults", f"{tally.faults.total()} in {time.monotonic() - began:.0f} s: {_counts(tally.faults)}")
    row("requests", f"{tally.endings.total()}: {_counts(tally.endings)}")
    row("slowest request, s", f"{tally.slowest_request_s:.1f}")
    row("slowest /health/live, ms", f"{1000 * tally.slowest_live_s:.0f}")
    row("last fault to all models serving, s", f"{took_s:.1f} (at most {options.again:.0f})")
    compare(served, tally, before)


def kinds(chance: random.Random, count: int) -> Iterator[str]:
    """Every kind about as often as the others, in a random order."""
    drawn = [kind for _ in range(count // len(KINDS) + 1) for kind in KINDS][:count]
    chance.shuffle(drawn)
    return iter(drawn)


def serve_again(served: Served, tally: Tally, models: list[str], within_s: float) -> float:
    """Seconds until each model has finished an answer."""
    began, client = time.monotonic(), Client(served, tally)
    for model in models:
        while client.chat(model, max_tokens=2) != "finished":
            if time.monotonic() - began > 6 * within_s:
                tally.broken.append(f"{model} does not serve again after {6 * within_s:.0f} s")
                break
            time.sleep(0.05)
    took_s = time.monotonic() - began
    if took_s > within_s:
        tally.broken.append(f"it took {took_s:.1f} s until all models served again")
    return took_s


def settled(served: Served) -> dict[str, float]:
    """The front's figures with all models idle and no connection open."""
    until = time.monotonic() + 10.0
    while any(one["state"] != "ready" for one in served.models() if one["pid"]) and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(1.0)
    with served.front.oneshot():
        memory = served.front.memory_info().rss / 2**20
        return {"fds": served.front.num_fds(), "threads": served.front.num_threads(), "RSS MiB": round(memory, 1)}


def compare(served: Served, tally: Tally, before: dict[str, float]) -> None:
    """The front after it all, and its children against the workers it knows."""
    after = settled(served)
    for name, was in before.items():
        row(f"{name} of the front, before and after", f"{was:g} -> {after[name]:g}")
    for name, more in MAY_GROW.items():
        if after[name] > before[name] + more:
            tally.broken.append(f"the front's {name} grew from {before[name]:g} to {after[name]:g}")
    known = {one["pid"] for one in served.models()}
    unknown = [child.pid for child in served.workers() if child.pid not in known]
    row("workers that no model knows of", str(len(unknown)))
    if unknown:
        tally.broken.append(f"workers that no model knows of: {unknown}")


def finish(served: Served, tally: Tally) -> None:
    """Stop the server: nothing may be left of it."""
    if served.process.poll() is not None:
        tally.broken.append(f"the front died with {served.process.returncode}")
        return
    workers = served.workers()
    began = time.monotonic()
    code = served.stop()
    row("SIGTERM to the end, s", f"{time.monotonic() - began:.2f} (exit code {code})")
    if code != 0:
        tally.broken.append(f"the server ended with {code}")
    _, left = psutil.wait_procs(workers, 2.0)
    if left:
        tally.broken.append(f"workers outlived the server: {[one.pid for one in left]}")
    row("processes left", str(len(left)))


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counter.most_common())


def row(figure: str, value: str) -> None:
    print(f"{figure:<40} {value}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
