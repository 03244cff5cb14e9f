"""The server under real memory pressure, in a control group of its own: who is killed by whom, and what clients see.

``python ops/bench/pressure.py [ramp|jump|twice|leave ...] [--runs 10] [--group-gib 2] [--streams 4] [--builtin]``

The server and a hog (another program that fills memory) share a group with a limit and no swap:

    ramp   the hog fills memory at 200 MiB/s until the kernel kills it, or everything else has made room
    jump   the hog takes 1 GiB at once, which is more than there is, and leaves after 3 s
    twice  the hog fills the group to 98.7 % at once, leaves after 1.5 s, and comes again when 3 s have passed since it
           came and all clients stream again
    leave  the hog fills the group to 96.5 % and leaves after 3 s, within the grace of busy models

Needs Linux, the right to make control groups (root), and ``--group-gib`` of free memory, at most 3. A run takes about
15 s. Exits with 1 when a target is missed, with 3 where no control group can be made, which it says in one sentence.
"""

import argparse
import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import psutil
from control_group import ControlGroup, NoGroup
from hog import Hog
from pressure_verdict import (
    Finding,
    Mode,
    Probe,
    Seen,
    Stream,
    WorkerSeen,
    back_after_s,
    judge,
    proves_something,
    summary,
)
from served import Served

from plimsoll import config
from plimsoll.catalog.installed import default_cache_dir, installed
from plimsoll.catalog.source import BUILTIN
from plimsoll.journal import read

NO_GROUP = 3
GIB = 1024**3
MOST_GIB = 3.0
HOG = Path(__file__).parent / "hog.py"
LOOK_S = 0.02
# How long clients are watched after the hog has gone for good; a level is held for ten seconds.
AFTER_S = {"ramp": 6.0, "jump": 6.0, "twice": 6.0, "leave": 14.0}
HOG_WITHIN_S = 60.0
ROUNDS = {"twice": 2}
APART_S = 3.0
HELD_S = 8.0
# An answer that outlasts every run.
_ENDLESS = "tokens_per_s=50,answer=la,length=1000000,context=2000000"


def hog_for(mode: Mode, group: ControlGroup) -> Hog:
    """What the hog of a mode does."""
    where = {"folder": str(group.folder), "version": group.version, "limit_bytes": group.limit_bytes}
    match mode:
        case "ramp":
            return Hog(to_bytes=group.limit_bytes, mib_per_s=200.0, stay_s=2.0, **where)
        case "jump":
            return Hog(to_bytes=GIB, stay_s=3.0, **where)
        case "twice":
            return Hog(percent=98.7, stay_s=1.5, **where)
        case "leave":
            return Hog(percent=96.5, mib_per_s=200.0, stay_s=3.0, **where)


class Run:
    """One server, its clients, and all that is seen of them."""

    def __init__(self, group: ControlGroup, served: Served, models: list[str]) -> None:
        self.group, self.served, self.models = group, served, models
        self.seen = Seen(began=time.monotonic())
        self._stop = threading.Event()
        self._pressed = threading.Event()
        self._threads: list[threading.Thread] = []
        self._workers: dict[int, WorkerSeen] = {}
        self._streams = 0

    # ---- clients

    def start(self, streams: int, *, again: bool) -> None:
        """Load the models, begin the streams, and look; ``again``: a client whose stream has ended begins another."""
        for model in self.models:
            self.served.load(model)
        self._go(self._look)
        self._go(self._ask_for_life)
        self._streams = streams
        for number in range(streams):
            self._go(self._keep_streaming if again else self._stream, self.models[number % len(self.models)])
        if not self._all_stream(30.0):
            raise TimeoutError("the streams do not begin")
        for model in self.models:
            self._go(self._probe, model)

    def press(self, mode: Mode) -> None:
        """Let the hog do its work, and watch for a while after it."""
        hog = hog_for(mode, self.group)
        with self.group.inside("hog"):
            process = subprocess.Popen(
                [sys.executable, HOG, json.dumps(asdict(hog))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        try:
            assert process.stdin
            assert process.stdout
            process.stdout.readline()
            self.seen.began = time.monotonic()
            killer = threading.Timer(HOG_WITHIN_S, process.kill)
            killer.start()
            for number in range(ROUNDS.get(mode, 1)):
                if number:
                    # Not longer than a level is held: it is the second emergency inside it that counts.
                    self._all_stream(HELD_S)
                    time.sleep(max(0.0, self.seen.began + APART_S - time.monotonic()))
                self._pressed.set()
                self._one_round(process)
            process.stdin.close()
            process.wait()
            killer.cancel()
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()
        if process.returncode:
            # Its memory came back with its end.
            self.seen.free.append(time.monotonic())
        self._stop.wait(AFTER_S[mode])

    def _one_round(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin
        assert process.stdout
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write("go\n")
            process.stdin.flush()
        for into in (self.seen.filled, self.seen.free):
            if line := process.stdout.readline():
                into.append(float(line.split()[1]))

    def _all_stream(self, within_s: float) -> bool:
        """Wait until all clients get text, so that every model is busy; False when that takes too long."""
        until = time.monotonic() + within_s
        while sum(one.outcome == "open" for one in self.seen.streams) < self._streams:
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    def end(self) -> Seen:
        """Stop looking; what was seen."""
        self.seen.ended = time.monotonic()
        self.seen.front_died = self.served.process.poll() is not None
        self.seen.oom_kills = {name: self.group.oom_kills(name) for name in ("server", "hog")}
        self.stop()
        self.seen.workers = list(self._workers.values())
        return self.seen

    def stop(self) -> None:
        """No client asks and nobody looks any more."""
        self._stop.set()
        for thread in self._threads:
            thread.join(10.0)

    def _go(self, what: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=what, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _keep_streaming(self, model: str) -> None:
        while not self._stop.is_set():
            self._stream(model)
            self._stop.wait(0.2)

    def _stream(self, model: str) -> None:
        stream = Stream(time.monotonic(), outcome="waits")
        self.seen.streams.append(stream)
        try:
            with self._chat(model, stream=True) as response:
                if response.status != 200:
                    outcome = json.load(response)["error"]["code"]
                else:
                    outcome = self._read(stream, response)
        except (OSError, http.client.HTTPException, ValueError) as error:
            outcome = f"broken: {type(error).__name__}: {error}"
        if not self._stop.is_set():
            stream.ended, stream.outcome = time.monotonic(), outcome

    def _read(self, stream: Stream, response: http.client.HTTPResponse) -> str:
        for raw in response:
            if self._stop.is_set():
                return "open"
            if not raw.startswith(b"data: "):
                continue
            if raw.startswith(b"data: [DONE]"):
                return "ok"
            stream.outcome = "open"
            event = json.loads(raw[6:])
            if "error" in event:
                return str(event["error"]["code"])
        return "broken: the stream just ends"

    def _probe(self, model: str) -> None:
        """Ask for short answers again and again, as a client that does what Retry-After says would."""
        self._pressed.wait()
        while not self._stop.is_set():
            asked = time.monotonic()
            try:
                with self._chat(model, max_tokens=3) as response:
                    body = json.load(response)
                    outcome = "ok" if response.status == 200 else body["error"]["code"]
            except (OSError, http.client.HTTPException, ValueError) as error:
                outcome = f"broken: {type(error).__name__}"
            self.seen.probes.append(Probe(asked, time.monotonic(), outcome, model))
            self._stop.wait(0.3)

    def _chat(self, model: str, **more: Any) -> contextlib.AbstractContextManager[http.client.HTTPResponse]:
        body = {"model": model, "messages": [{"role": "user", "content": "Count from one on."}], **more}
        return self.served.request("POST", "/v1/chat/completions", body, timeout_s=30.0)

    # ---- what is looked at

    def _look(self) -> None:
        while not self._stop.is_set():
            now = time.monotonic()
            self.seen.samples.append((now, 100 * self.group.used_bytes() / self.group.limit_bytes))
            with contextlib.suppress(psutil.Error):
                alive = {one.pid for one in self.served.workers()}
                for pid in alive - self._workers.keys():
                    self._workers[pid] = WorkerSeen(pid, now)
                for pid, worker in self._workers.items():
                    if pid not in alive:
                        worker.ended = min(worker.ended, now)
            self._stop.wait(LOOK_S)

    def _ask_for_life(self) -> None:
        while not self._stop.is_set():
            asked = time.monotonic()
            try:
                with self.served.request("GET", "/health/live", timeout_s=10.0) as response:
                    response.read()
                took = time.monotonic() - asked
            except (OSError, http.client.HTTPException):
                took = 10.0
            if not self._stop.is_set():
                self.seen.live.append((asked, took))
            self._stop.wait(0.1)


@contextlib.contextmanager
def serving(group: ControlGroup, folder: Path, settings: dict[str, Any]) -> Iterator[Served]:
    """The server inside the group; what it started is gone afterwards, whatever became of the server."""
    with group.inside("server"):
        served = Served(folder, settings)
    workers: list[psutil.Process] = []
    try:
        with served:
            yield served
            with contextlib.suppress(psutil.Error):
                workers = served.workers()
            if served.process.poll() is None:
                served.stop()
    finally:
        for one in psutil.wait_procs(workers, timeout=10.0)[1]:
            one.kill()


def one_run(mode: Mode, limit_bytes: int, streams: int, *, builtin: bool) -> Seen:
    """One server under one hog."""
    names = ["a", "b"] if limit_bytes >= 1.5 * GIB else ["a"]
    hold_mib = limit_bytes // 4 // 1024**2
    entries = {name: {"source": f"fake:hold={hold_mib}MiB,{_ENDLESS}"} for name in names}
    settings = {
        "models": {"builtin": builtin, "entries": {} if builtin else entries},
        "engine": {"kv_budget": "64MiB"},
        "logging": {},
    }
    with (
        tempfile.TemporaryDirectory(prefix="plimsoll-pressure-") as text,
        ControlGroup(limit_bytes, ("server", "hog")) as group,
        serving(group, folder := Path(text), settings | {"logging": _logging(folder)}) as served,
    ):
        run = Run(group, served, [BUILTIN.name] if builtin else names)
        try:
            run.start(streams, again=mode in ROUNDS)
            run.press(mode)
            seen = run.end()
        finally:
            # Whatever ended it: nobody looks at a group that is about to go.
            run.stop()
        seen.told = _told(folder, seen)
    return seen


def _logging(folder: Path) -> dict[str, str]:
    return {"file": str(folder / "plimsoll.log"), "blackbox": str(folder / "blackbox.sqlite")}


def _told(folder: Path, seen: Seen) -> Counter[str]:
    """What the server says that it did since the hog began."""
    time.sleep(1.2)  # the black box is written once a second
    found = read.events(folder / "blackbox.sqlite", time.monotonic() - seen.began + 1.2)
    return Counter(entry.event.kind for entry in found)


def describe(number: int, mode: Mode, seen: Seen, findings: list[Finding]) -> None:
    """Two lines: what was seen, and what fell short."""
    ends = Counter(one.outcome for one in seen.streams)
    probes = Counter(one.outcome for one in seen.probes)
    peak = max((percent for at, percent in seen.samples if at >= seen.began), default=0.0)
    killed = ", ".join(f"{count} of the {name}'s" for name, count in seen.oom_kills.items() if count) or "nobody"
    print(
        f"{mode} {number}: peak {peak:.1f} %; the kernel killed {killed}; streams {_counts(ends)}; "
        f"probes {_counts(probes)}; back after {back_after_s(seen):.1f} s; the server: {_counts(seen.told)}"
    )
    for one in findings:
        if not one.ok:
            print(f"  FALLS SHORT: {one.figure}: {one.value}")
    sys.stdout.flush()


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counter.most_common()) or "none"


def main() -> int:
    """Run, print, judge; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modes", nargs="*", metavar="MODE", choices=[*get_args(Mode), []], default=[])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--group-gib", type=float, default=2.0, help=f"the group's limit, at most {MOST_GIB:g}")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--builtin", action="store_true", help="the built-in model instead of fakes with real bytes")
    options = parser.parse_args()
    limit = int(min(options.group_gib, MOST_GIB) * GIB)
    if options.builtin and not installed(BUILTIN, default_cache_dir(config.parse({}))):
        parser.error(f"{BUILTIN.name} is not here; plimsoll pull {BUILTIN.name} fetches it")
    print(f"{limit / GIB:g} GiB, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start", flush=True)
    short = False
    for mode in options.modes or get_args(Mode):
        runs: list[list[Finding]] = []
        for number in range(2 * options.runs):
            try:
                seen = one_run(mode, limit, options.streams, builtin=options.builtin)
            except NoGroup as error:
                print(error)
                return NO_GROUP
            findings = judge(mode, seen)
            describe(number + 1, mode, seen, findings)
            if proves_something(mode, seen):
                runs.append(findings)
            else:
                print("  does not count: no look found a worker at one of the emergencies")
            if len(runs) == options.runs:
                break
        short = short or len(runs) < options.runs
        for figure, kept, count in summary(runs):
            short = short or kept < count
            print(f"{mode}: {figure:<64} {kept} of {count}{'' if kept == count else '   FALLS SHORT'}")
    print(f"load {os.getloadavg()[0]:.1f} at the end")
    return int(short)


if __name__ == "__main__":
    sys.exit(main())
