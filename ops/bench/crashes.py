"""What a crash costs others, and what a refused request leaves behind: nothing, says this or exits with 1.

Run: python ops/bench/crashes.py [--crashes 50] [--refusals 2000]. Loopback only, fake models, a real server.

One of two busy workers is ended by SIGSEGV, then by SIGKILL, again and again, with memory to spare: the other one's
streams and a pinned model must not notice. Then requests of 100 kB are refused: the front must not grow.
"""

import argparse
import http.client
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from served import Served

STREAMS = 3
TOKENS_PER_S = 50
# A stream of 50 tokens per second that is silent for longer has noticed something.
SILENCE_S = 1.0
REFUSED_BYTES = 100_000
MAY_GROW_MB = 5.0
DEADLINE_S = 30.0
ENDLESS = f"tokens_per_s={TOKENS_PER_S},answer=la,length=1000000,context=2000000"
MODELS: dict[str, Any] = {
    "victim": {"source": f"fake:hold=20MiB,{ENDLESS}"},
    "other": {"source": f"fake:hold=20MiB,{ENDLESS}"},
    "pinned": {"source": "fake:hold=20MiB", "pin": True},
    "torn": {"source": "fake:fail_load=the weights are torn"},
}


@dataclass
class Seen:
    """What was seen; ``broken`` holds sentences about promises that were not kept."""

    tokens: int = 0
    slowest_s: float = 0.0
    endings: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def chat(served: Served, model: str, text: str, on_line: Callable[[bytes], bool]) -> int:
    """One streaming chat, line by line until ``on_line`` says enough; the status."""
    messages = [{"role": "user", "content": text}]
    body = {"model": model, "stream": True, "max_tokens": 900_000, "messages": messages}
    with served.request("POST", "/v1/chat/completions", body, timeout_s=DEADLINE_S) as response:
        for line in response:
            if on_line(line):
                break
        return response.status


def watch(served: Served, seen: Seen, stop: threading.Event) -> None:
    """A stream of the model that nothing is done to."""
    last = 0.0

    def on_line(line: bytes) -> bool:
        nonlocal last
        if b'"error"' in line or b'"finish_reason":"' in line:
            seen.endings.append(line.decode().strip())
            return True
        if line.startswith(b"data: {"):
            now = time.monotonic()
            seen.tokens += 1
            seen.slowest_s = max(seen.slowest_s, now - last if last else 0.0)
            last = now
        return stop.is_set()

    try:
        status = chat(served, "other", "go on", on_line)
    except (OSError, http.client.HTTPException) as error:
        status, _ = 0, seen.endings.append(repr(error))
    if not stop.is_set():
        seen.broken.append(f"a stream of the other model ended ({status}): {seen.endings[-1:]}")


def crash(served: Served, number: signal.Signals) -> str:
    """End the victim's worker while it streams; how the client saw it."""
    told = []

    def on_line(line: bytes) -> bool:
        if b'"error"' in line:
            told.append(json.loads(line.removeprefix(b"data: "))["error"]["code"])
        elif b'"content"' in line and not told:
            pid = pids(served)["victim"]
            if pid and pid not in ended:
                ended.add(pid)
                os.kill(pid, number)
        return bool(told)

    ended: set[int] = set()
    status = chat(served, "victim", "go on", on_line)
    return told[0] if told else f"status {status} without an error"


def pids(served: Served) -> dict[str, int | None]:
    return {one["name"]: one["pid"] for one in served.models()}


def crashes(served: Served, count: int) -> list[str]:
    """Sentences about promises that were not kept."""
    seen, stop = Seen(), threading.Event()
    for model in ("other", "pinned"):
        served.load(model)
    before = {name: pid for name, pid in pids(served).items() if name in ("other", "pinned")}
    threads = [threading.Thread(target=watch, args=(served, seen, stop), daemon=True) for _ in range(STREAMS)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    for number in (signal.SIGSEGV, signal.SIGKILL):
        codes = []
        for _ in range(count):
            codes.append(crash(served, number))
            # Three deaths in a minute are the last: an unload begins a new life.
            served.unload("victim")
        row(f"deaths by {number.name}", f"{len(codes)}: {_counted(codes)}")
        seen.broken += [f"a death by {number.name} was told as {code}" for code in codes if code != "worker_died"]
    after = {name: pid for name, pid in pids(served).items() if name in before}
    stop.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    row("seconds", f"{time.monotonic() - began:.0f}")
    row("memory used, percent", f"{served.health()['memory']['used_percent']:.1f}")
    row("tokens of the other model meanwhile", str(seen.tokens))
    row("longest silence in its streams, ms", f"{1000 * seen.slowest_s:.0f} (at most {1000 * SILENCE_S:.0f})")
    row("workers of the other and the pinned model", "the same as before" if after == before else f"{before} {after}")
    if after != before:
        seen.broken.append(f"workers that nothing was done to were replaced: {before} {after}")
    if seen.slowest_s > SILENCE_S:
        seen.broken.append(f"a stream of the other model was silent for {seen.slowest_s:.1f} s")
    return seen.broken


def refusals(served: Served, count: int) -> list[str]:
    """Sentences about promises that were not kept."""
    text = "x" * REFUSED_BYTES

    def refuse(times: int) -> list[int]:
        return [chat(served, "torn", text, lambda _line: False) for _ in range(times)]

    refuse(100)
    time.sleep(1.0)
    before = served.front.memory_info().rss / 1e6
    statuses = refuse(count)
    time.sleep(1.0)
    after = served.front.memory_info().rss / 1e6
    row(f"refused requests of {REFUSED_BYTES // 1000} kB", f"{len(statuses)}: {_counted(statuses)}")
    row("the front before and after, MB", f"{before:.1f} -> {after:.1f} (may grow by {MAY_GROW_MB:.0f})")
    broken = [f"a request was answered with {status}" for status in statuses if status != 503]
    if after - before > MAY_GROW_MB:
        broken.append(f"the front grew by {after - before:.1f} MB")
    return broken


def _counted(items: list[Any]) -> str:
    return ", ".join(f"{items.count(one)} {one}" for one in dict.fromkeys(items))


def row(figure: str, value: str) -> None:
    print(f"{figure:<46} {value}", flush=True)


def main() -> int:
    """Run both, print one line per figure, and say what was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crashes", type=int, default=50)
    parser.add_argument("--refusals", type=int, default=2000)
    options = parser.parse_args()
    settings = {
        "models": {"builtin": False, "entries": MODELS},
        # Answers end with their worker, so that each death shows at a client; ops/bench/survival.py has them go on.
        "memory": {"patience": 0},
    }
    row("load average", " ".join(f"{one:.1f}" for one in os.getloadavg()))
    with tempfile.TemporaryDirectory() as folder, Served(Path(folder), settings) as served:
        broken = crashes(served, options.crashes) if options.crashes else []
        broken += refusals(served, options.refusals) if options.refusals else []
        served.stop()
    for line in broken[:20]:
        print(f"BROKEN: {line}")
    print("every promise was kept" if not broken else f"{len(broken)} promises were broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
