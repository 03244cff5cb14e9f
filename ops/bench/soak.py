"""Full load for a long time, to see whether the front process grows.

Run: python ops/bench/soak.py [--minutes 30] [--streams 12] [--no-builtin]. Loopback only. Prints the front's memory,
descriptors and threads as it goes, and at the end the slope of its memory after the first five minutes (a sixth of the
run, if that is shorter). Exits with 1 when it grows by 1 MB or more in 10 minutes, or when a request broke.
"""

import argparse
import contextlib
import http.client
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from served import Served

BUILTIN = "smollm2-135m"
FAKE = {
    "talker": {"source": "fake:tokens_per_s=200,answer=la,length=400"},
    "comer": {"source": "fake:load_s=0.2,tokens_per_s=200,answer=la,length=50,hold=20MiB", "idle_ttl": "1s"},
}
_ON_BUILTIN = 2
WARM_UP_S = 300.0
LOOK_S = 5.0
ROW_S = 30.0
MOST_MB = 1.0
PER_S = 600.0


class Load:
    """Clients that never rest: streams, whole answers, answers that are left early, health and pages of figures."""

    def __init__(self, served: Served, seed: int, *, builtin: bool) -> None:
        self.ended: Counter[str] = Counter()
        self.stop = threading.Event()
        self._served, self._builtin, self._chance = served, builtin, random.Random(seed)

    @contextlib.contextmanager
    def run(self, streams: int) -> Iterator[None]:
        """Clients ask meanwhile. The last answers are waited for, unless the run was cut short."""
        # As daemons: no client that waits for an answer holds up the end.
        threads = [
            threading.Thread(target=self._ask_for_ever, args=(number,), daemon=True) for number in range(streams)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stop.set()
        for thread in threads:
            thread.join(120.0)

    def _ask_for_ever(self, number: int) -> None:
        chance = random.Random(self._chance.random() + number)
        while not self.stop.is_set():
            # The real model is slow on a CPU: were it everybody's choice, all would soon wait for it.
            model = BUILTIN if self._builtin and number < _ON_BUILTIN else chance.choice(list(FAKE))
            kind = chance.choices(("stream", "whole", "left early", "figures"), (6, 2, 1, 2))[0]
            try:
                self._figures(chance) if kind == "figures" else self._chat(model, kind, chance)
                self.ended[kind] += 1
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.ended[f"error: {type(error).__name__}: {error}"[:100]] += 1

    def _figures(self, chance: random.Random) -> None:
        path = chance.choice(("/health", "/admin/models", "/v1/models", "/metrics"))
        with self._served.request("GET", path) as response:
            response.read()
            if response.status != 200:
                raise ValueError(f"{path} answered {response.status}")

    def _chat(self, model: str, kind: str, chance: random.Random) -> None:
        text = " ".join(chance.choices(("rain", "tree", "river", "stone"), k=20))
        body: dict[str, Any] = {"model": model, "max_tokens": chance.choice((5, 30, 100)), "stream": kind != "whole"}
        body["messages"] = [{"role": "user", "content": text}]
        with self._served.request("POST", "/v1/chat/completions", body, timeout_s=120.0) as response:
            if response.status != 200:
                raise ValueError(f"{response.status} {json.loads(response.read())['error']['code']}")
            if kind == "left early":
                response.readline()
                return
            data = response.read()
        if kind == "stream" and not data.rstrip().endswith(b"[DONE]"):
            raise ValueError("a stream without its end")


def main() -> int:
    """Load, look, print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--streams", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-builtin", dest="builtin", action="store_false")
    options = parser.parse_args()
    settings = {"models": {"builtin": options.builtin, "entries": FAKE}}
    with tempfile.TemporaryDirectory() as folder, Served(Path(folder), settings) as served:
        load = Load(served, options.seed, builtin=options.builtin)
        with load.run(options.streams):
            points = watch(served, load, options.minutes * 60)
        code = served.stop()
    warm_s = min(WARM_UP_S, options.minutes * 10)
    grown = slope([point for point in points if point[0] >= warm_s]) * PER_S
    errors = sum(count for what, count in load.ended.items() if what.startswith("error"))
    print(f"requests: {', '.join(f'{count} {what}' for what, count in load.ended.most_common())}")
    print(f"front after the first {warm_s / 60:.1f} min: {grown:+.2f} MB per 10 min (less than {MOST_MB:g})")
    print(f"errors: {errors}; exit code of the server: {code}")
    return 1 if grown >= MOST_MB or errors or code else 0


def watch(served: Served, load: Load, seconds: float) -> list[tuple[float, float]]:
    """(seconds, MB) of the front's memory, every five seconds; a row is printed now and then."""
    began, points, printed = time.monotonic(), [], -ROW_S
    print(f"{'s':>6} {'RSS MB':>8} {'fds':>5} {'threads':>8} {'requests':>9}")
    while (at := time.monotonic() - began) < seconds:
        rss = served.front.memory_info().rss / 2**20
        points.append((at, rss))
        if at - printed >= ROW_S:
            printed = at
            fds, threads = served.front.num_fds(), served.front.num_threads()
            print(f"{at:6.0f} {rss:8.2f} {fds:5} {threads:8} {load.ended.total():9}", flush=True)
        time.sleep(LOOK_S)
    return points


def slope(points: list[tuple[float, float]]) -> float:
    """The least-squares slope, 0 for too few points."""
    if len(points) < 3:
        return 0.0
    return statistics.linear_regression(*zip(*points, strict=True)).slope


if __name__ == "__main__":
    sys.exit(main())
