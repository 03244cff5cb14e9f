"""Measure what becomes of workers while memory fills up again and again: ``python ops/bench/emergencies.py``.

Real worker processes and a real hog hold real bytes, at most 1 GiB in all, under ``memory.limit``. That counts the
front and its workers only, so the sampler adds what the hog holds, as a stranger's. Linux only; about five minutes.
"""

import argparse
import dataclasses
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import msgspec
from inside import MIB, SHORT, Answer, Background, Server, children, footprint, line, lives

from plimsoll.actors import messages as m
from plimsoll.actors.status import State
from plimsoll.journal import events
from plimsoll.memory.sample import Level, Sample
from plimsoll.memory.sources import SystemSampler

LIMIT = 1024 * MIB
STREAM = "fake:hold=100MiB,tokens_per_s=50,answer=la,length=1000000,context=10000000"
_HOG = """
import mmap, sys
held = []
for line in sys.stdin:
    size = int(line)
    if size < sum(map(len, held)):
        for block in held:
            block.close()
        held = []
    if more := size - sum(map(len, held)):
        held.append(mmap.mmap(-1, more, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        for at in range(0, more, 4096):
            held[-1][at] = 1
    print("done", flush=True)
"""


class Hog:
    """A process beside the server that holds as many bytes as it is told to."""

    def __init__(self) -> None:
        self._held = 0
        self._process = subprocess.Popen(
            [sys.executable, "-c", _HOG], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        self.hold(0)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def hold(self, size: int) -> None:
        """Hold that much and nothing else; returns when it does."""
        assert self._process.stdin
        assert self._process.stdout
        self._held = max(0, size)
        self._process.stdin.write(f"{self._held}\n")
        self._process.stdin.flush()
        self._process.stdout.readline()

    def fill(self, percent: float) -> None:
        """Fill the limit up to this, with what the front, its workers and the hog hold now."""
        others = footprint(os.getpid()) + sum(footprint(pid) for pid in children() if pid != self.pid)
        self.hold(self._held + int(LIMIT * percent / 100) - others - footprint(self.pid))

    def leave(self) -> None:
        self.hold(0)


class HogSampler:
    """The system's sampler under a limit that the hog's bytes count in too; remembers every sample."""

    def __init__(self, hog: Hog) -> None:
        self._sampler = SystemSampler(limit_bytes=LIMIT)
        self._hog = hog
        self.seen: list[tuple[float, float]] = []  # time, percent

    def __call__(self, tracked: Any = ()) -> Sample:
        sample = self._sampler(tracked)
        stranger = footprint(self._hog.pid)
        readings = tuple(
            msgspec.structs.replace(one, used=one.used + stranger)
            for one in sample.readings
            if one.source == "limit"  # how full this machine is for others is not the question
        )
        sample = msgspec.structs.replace(sample, readings=readings, pressure=Level.NORMAL, pressure_source="")
        self.seen.append((sample.time_s, sample.used_percent))
        return sample


class Pids(Background):
    """Which workers run, every 5 ms."""

    def __init__(self, hog: Hog) -> None:
        super().__init__(0.005)
        self._hog = hog
        self.spans: dict[int, list[float]] = {}  # first and last seen

    def look(self) -> None:
        running = [pid for pid in children() if pid != self._hog.pid and lives(pid)]
        for pid in running:
            self.spans.setdefault(pid, [time.monotonic(), 0.0])[1] = time.monotonic()

    def running_at(self, at: float) -> list[int]:
        return [pid for pid, (first, last) in dict(self.spans).items() if first <= at <= last]

    def gone_after(self, pid: int, at: float) -> float:
        """Seconds from that moment until it was last seen."""
        return self.spans[pid][1] - at


@dataclasses.dataclass
class Scene:
    hog: Hog
    sampler: HogSampler
    server: Server
    pids: Pids


@contextmanager
def scene(models: int, **memory: Any) -> Iterator[Scene]:
    names = "abcd"[:models]
    with Hog() as hog:
        sampler = HogSampler(hog)
        sections = {"memory": {"limit": LIMIT, "patience": 0, **memory}}
        with Server(dict.fromkeys(names, STREAM), sampler=sampler, **sections) as server, Pids(hog) as pids:
            yield Scene(hog, sampler, server, pids)


class Clients:
    """One for each model: asks again 50 ms after it was ended or refused, as clients do."""

    def __init__(self, server: Server, names: str) -> None:
        self._server = server
        self.open: dict[str, Answer] = {}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(name,)) for name in names]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def all_stream(self) -> bool:
        return len(self.open) == len(self._threads) and all(
            one.begun.is_set() and not one.done.is_set() for one in self.open.values()
        )

    def _run(self, name: str) -> None:
        while not self._stop.is_set():
            answer = self.open[name] = self._server.chat(name)
            while not (answer.done.wait(0.05) or self._stop.is_set()):
                pass
            self._stop.wait(0.05)


# ---- what is measured


def twice(*, quick: bool) -> None:
    """Two emergencies 3 s apart, inside the level of the first: who runs on, and how soon service is back."""
    rounds = 3 if quick else 20
    took: list[float] = []
    back: list[float] = []
    second_inside = 0
    with scene(2) as it:
        with Clients(it.server, "ab") as clients:
            for _ in range(rounds):
                it.server.until(clients.all_stream)
                levels = _emergencies(it.server)
                began = time.monotonic()
                for number in range(2):
                    time.sleep(max(0.0, began + 3.0 * number - time.monotonic()))
                    it.server.until(clients.all_stream)
                    before = it.pids.running_at(time.monotonic() - 0.02)
                    since = time.monotonic()
                    it.hog.fill(99.5)
                    at = it.server.until(lambda since=since: _first_at(it.sampler, since, 98.0))
                    time.sleep(1.2)
                    took += [it.pids.gone_after(pid, at) for pid in before]
                    it.hog.leave()
                    left = time.monotonic()
                    it.server.until(clients.all_stream)
                    back.append(time.monotonic() - left)
                second_inside += _emergencies(it.server) <= levels + 1
        late = [
            it.pids.gone_after(pid, at)
            for at, percent in list(it.sampler.seen)
            if percent >= 98
            for pid in it.pids.running_at(at)
        ]
    title = f"two emergencies 3 s apart, {rounds} times"
    line(f"{title}: second one inside the held level", "", f"{second_inside} of {rounds}", ok=None)
    text = f"{max(took):.2f} s worst of {len(took)} workers"
    line(f"{title}: sample to worker gone", "< 1 s", text, ok=max(took) < 1)
    text = f"{sum(one > 1 for one in late)} of {len(late)} (worker, sample); {max(late, default=0):.2f} s worst"
    line("workers that run 1 s after a sample at 98 %", "0", text, ok=not late or max(late) <= 1)
    text = f"{max(back):.2f} s worst, {sorted(back)[len(back) // 2]:.2f} s median"
    line("hog gone to all streams running again", "", text, ok=None)


def called_off(*, quick: bool) -> None:
    """A hog at critical that leaves within the grace."""
    rounds = 2 if quick else 10
    grace_s = 5.0
    ended = drained = 0
    with scene(2, critical_grace=grace_s) as it:
        streams = [it.server.chat(name) for name in "aabb"]
        it.server.until(lambda: all(one.begun.is_set() for one in streams))
        workers = it.pids.running_at(time.monotonic() - 0.02)
        for _ in range(rounds):
            it.hog.fill(96.5)
            drained += bool(it.server.until(lambda: _drains(it.server)))
            waiting = it.server.chat("a")
            time.sleep(2.0)
            it.hog.leave()
            it.server.until(waiting.begun.is_set)
            it.server.tell(m.Cancel(waiting.id, "a"))  # type: ignore[attr-defined] # set in chat
            time.sleep(grace_s)
            ended += sum(one.done.is_set() for one in streams)
        same = it.pids.running_at(time.monotonic() - 0.02) == workers
    title = f"a hog that leaves within the grace, {rounds} times"
    line(f"{title}: drains begun", str(rounds), str(drained), ok=drained == rounds)
    line(f"{title}: streams ended", "0", f"{ended} of {4 * rounds}", ok=not ended)
    line(f"{title}: who waited was served by the same workers", "yes", "yes" if same else "no", ok=same)


def _emergencies(server: Server) -> int:
    return sum(event.level == events.LevelName.EMERGENCY for _, event in server.of(events.LevelChanged))


def _first_at(sampler: HogSampler, since: float, percent: float) -> float | None:
    return next((at for at, seen in list(sampler.seen) if at >= since and seen >= percent), None)


def _drains(server: Server) -> bool:
    return any(one.state == State.DRAINING for one in server.status().models)


MEASUREMENTS: dict[str, Callable[..., None]] = {"twice": twice, "called-off": called_off}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--only", choices=MEASUREMENTS, action="append")
    chosen = parser.parse_args()
    if not Path("/proc/self/status").exists():
        sys.exit("footprints are read in /proc, which is not here")
    logging.getLogger().addHandler(logging.NullHandler())
    os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="plimsoll-bench-")
    print(f"{os.cpu_count()} cores; load {os.getloadavg()[0]:.1f} at the start")
    line("FIGURE", "TARGET", "VALUE", ok=None)
    for name, measure in MEASUREMENTS.items():
        if not chosen.only or name in chosen.only:
            measure(quick=chosen.quick)
    print(f"load {os.getloadavg()[0]:.1f} at the end; {len(SHORT)} of the targets missed")
    sys.exit(bool(SHORT))


if __name__ == "__main__":
    main()
