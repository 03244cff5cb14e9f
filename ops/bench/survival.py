"""Do answers survive their workers, emergencies and other models? Run ``python ops/bench/survival.py``.

``kills``: workers of three models are ended by SIGKILL at random moments under eight streams of a real server; every
answer must be the one that an undisturbed run gave. ``emergencies``: real bytes fill the memory of fake engines for
5 s, again and again. ``long``: once for longer than ``memory.patience``. ``engines`` and ``engines-long``: the same
with real engines, in a control group of 2 GiB, where one can be made. ``turns``: 20 requests at once for three models
of which one fits. Loopback only. The kills take some ten minutes, the rest five.
"""

import argparse
import http.client
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from control_group import ControlGroup, NoGroup
from emergencies import LIMIT, Hog, HogSampler
from hog import Hog as FillingHog
from inside import MIB, SHORT, Answer, Server, line
from served import Served

from plimsoll.actors.replies import Failed, Finished
from plimsoll.catalog.source import BUILTIN
from plimsoll.journal import events

# ---- kills

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Paris"]}, "days": {"type": "array", "items": {"enum": [1, 2, 3]}}},
    "required": ["city", "days"],
}
LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {"type": "object", "properties": {"at": {"enum": ["sea", "ship"]}}, "required": ["at"]},
    },
}
STORY = [{"role": "user", "content": "Tell me a long story about a ship in a storm."}]
SEEDED = {"temperature": 0.9, "top_p": 0.95, "seed": 11}
# One stream each; they are asked again and again.
STREAMS: dict[str, dict[str, Any]] = {
    "greedy": {"model": BUILTIN.name, "temperature": 0, "max_tokens": 120},
    "seeded, log-probabilities": {"model": BUILTIN.name, **SEEDED, "max_tokens": 100, "logprobs": True},
    "schema": {
        "model": BUILTIN.name,
        **SEEDED,
        "max_tokens": 60,
        "response_format": {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA}},
    },
    "forced call": {
        "model": BUILTIN.name,
        **SEEDED,
        "max_tokens": 60,
        "tools": [LOOK],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
    },
    "thoughts": {"model": "tiny", **SEEDED, "max_tokens": 300, "reasoning_effort": "low"},
    "stop string": {"model": "tiny", **SEEDED, "seed": 5, "max_tokens": 300, "stop": []},
    "hybrid, greedy": {"model": "hybrid", "temperature": 0, "max_tokens": 300},
    "hybrid, seeded": {"model": "hybrid", **SEEDED, "max_tokens": 300, "logprobs": True, "top_logprobs": 1},
}
MODELS = (BUILTIN.name, "tiny", "hybrid")
# Long answers, so that an emergency finds most of them running.
LONG_STREAMS = {
    f"{model}, {name}": {"model": model, **sampling, "max_tokens": 1200}
    for model in ("tiny", "hybrid")
    for name, sampling in {
        "greedy": {"temperature": 0},
        "seeded": SEEDED,
        "log-probabilities": {**SEEDED, "seed": 12, "logprobs": True, "top_logprobs": 1},
        "penalties": {**SEEDED, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    }.items()
}
EVERY_S = (0.5, 3.5)
# Of ten kills so many may hit a worker that still loads: a machine that is slow to load would never serve.
LOADING_OF_TEN = 1


class Told:
    """What one answer said, and when something of it came."""

    def __init__(self) -> None:
        self.text = self.thoughts = self.calls = self.reason = ""
        self.tokens: list[str] = []
        self.error = ""
        self.at: list[float] = []

    @property
    def refused(self) -> bool:
        """Whether it ended before it had begun, with 503."""
        return not self.at and self.error.startswith("status 503")

    @property
    def whole(self) -> tuple[str, ...]:
        return (self.text, self.thoughts, self.calls, self.reason, *self.tokens)

    def add(self, chunk: dict[str, Any]) -> None:
        self.at.append(time.monotonic())
        if "error" in chunk:
            self.error = str(chunk["error"])
        for choice in chunk.get("choices", ()):
            delta = choice["delta"]
            self.text += delta.get("content") or ""
            self.thoughts += delta.get("reasoning_content") or delta.get("reasoning") or ""
            for call in delta.get("tool_calls") or ():
                self.calls += (call["function"].get("name") or "") + call["function"].get("arguments", "")
            self.tokens += [one["token"] for one in (choice.get("logprobs") or {}).get("content") or ()]
            self.reason = choice.get("finish_reason") or self.reason


def ask(served: Served, body: dict[str, Any]) -> Told:
    """One streaming chat to its end."""
    told = Told()
    asked = {"messages": STORY, "stream": True, **body}
    try:
        with served.request("POST", "/v1/chat/completions", asked, timeout_s=120) as response:
            if response.status != 200:
                told.error = f"status {response.status}: {response.read()!r}"
            for data in response:
                if data.startswith(b"data: ") and not data.startswith(b"data: [DONE]"):
                    told.add(json.loads(data[6:]))
    except (OSError, http.client.HTTPException) as error:
        told.error = repr(error)
    return told


@contextmanager
def server(folder: Path, models: Sequence[str] = MODELS, **memory: Any) -> Iterator[Served]:
    build = [sys.executable, str(Path(__file__).with_name("tiny_models.py")), str(folder / "models")]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    entries = {name: {"source": str(folder / "models" / name)} for name in ("tiny", "hybrid")}
    settings = {"models": {"entries": entries, "programs": []}, "server": {"keepalive": "1s"}, "memory": memory}
    with Served(folder, settings) as served:
        for model in models:
            served.load(model)
        yield served


class Killer:
    """Ends the worker of one model after the other by SIGKILL, at random moments; ``at`` has when, by model."""

    def __init__(self, served: Served, seed: int) -> None:
        self._served = served
        self._random = random.Random(seed)
        self.at: dict[str, list[float]] = {model: [] for model in MODELS}
        self.count = 0

    def kill_one(self) -> None:
        time.sleep(self._random.uniform(*EVERY_S))
        models = [one for one in self._served.models() if one["pid"]]
        if self._random.randrange(10) >= LOADING_OF_TEN:
            models = [one for one in models if one["state"] == "busy"]
        alive = {one["name"]: one["pid"] for one in models}
        if alive:
            name = self._random.choice(sorted(alive))
            try:
                psutil.Process(alive[name]).kill()
            except psutil.NoSuchProcess:
                return
            self.at[name].append(time.monotonic())
            self.count += 1


def pauses(told: Told, kills: list[float]) -> list[float]:
    """How long each kill during the answer held it up: from the kill to the next thing that came."""
    found = []
    for kill in kills:
        before = [at for at in told.at if at <= kill]
        after = [at for at in told.at if at > kill]
        if before and after:
            found.append(after[0] - kill)
    return found


class Clients:
    """One for each stream; what they are told is compared with ``wanted``, what each is told undisturbed."""

    def __init__(self, served: Served, streams: dict[str, dict[str, Any]]) -> None:
        self._served = served
        self.bodies = {kind: dict(body) for kind, body in streams.items()}
        for body in self.bodies.values():
            if "stop" in body:
                body["stop"] = [ask(served, {**body, "stop": None}).text[200:204]]
        self.wanted = {kind: ask(served, body) for kind, body in self.bodies.items()}
        for kind, told in self.wanted.items():
            if told.error or not told.whole:
                sys.exit(f"{kind} gives no answer even undisturbed: {told.error}")
        self.answers: list[tuple[str, Told]] = []
        self._stop = threading.Event()

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """They stream meanwhile, again and again; returns when all answers have ended."""
        threads = [threading.Thread(target=self._stream, args=(kind,)) for kind in self.bodies]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _stream(self, kind: str) -> None:
        while not self._stop.is_set():
            told = ask(self._served, self.bodies[kind])
            self.answers.append((kind, told))
            if told.error:
                time.sleep(1.0)


def kills(count: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as name, server(Path(name)) as served:
        clients = Clients(served, STREAMS)
        killer = Killer(served, seed)
        with clients.streaming():
            while killer.count < count:
                killer.kill_one()
        spread = ", ".join(f"{model}: {len(at)}" for model, at in killer.at.items())
        line("workers ended by SIGKILL under 8 streams", "", f"{killer.count} ({spread})", ok=None)
        judge(clients.wanted, clients.answers, served.log)
        held = [one for kind, told in clients.answers for one in pauses(told, killer.at[STREAMS[kind]["model"]])]
        line("times that a kill held an answer up", "", str(len(held)), ok=None)
        if held:
            text = f"{statistics.median(held):.2f} s median, {max(held):.2f} s longest"
            line("from the kill to the next token", "", text, ok=None)


def judge(wanted: dict[str, Told], answers: list[tuple[str, Told]], log: Path) -> None:
    """Whether each answer is the undisturbed one."""
    errors = [(kind, told.error) for kind, told in answers if told.error]
    different = [(kind, told) for kind, told in answers if not told.error and told.whole != wanted[kind].whole]
    line("answers", "", str(len(answers)), ok=None)
    line("answers that ended with an error", "0", str(len(errors)), ok=not errors)
    line("answers that are not the undisturbed one", "0", str(len(different)), ok=not different)
    for kind, error in errors[:5]:
        print(f"  {kind}: {error}")
    for kind, told in different[:5]:
        at = next((n for n, (a, b) in enumerate(zip(told.whole, wanted[kind].whole, strict=False)) if a != b), -1)
        print(f"  {kind}: part {at}: {told.whole[at][:300]!r}\n    instead of {wanted[kind].whole[at][:300]!r}")
    if errors or different:
        kept = Path(tempfile.gettempdir()) / "plimsoll-survival.log"
        kept.write_bytes(log.read_bytes())
        print(f"  the server's log: {kept}")


# ---- emergencies by real bytes

LENGTH = 1200
FAKE = f"fake:hold=100MiB,tokens_per_s=20,answer=la,length={LENGTH},context=10000000"


@contextmanager
def crowded(**memory: Any) -> Iterator[tuple[Hog, HogSampler, Server]]:
    with Hog() as hog:
        sampler = HogSampler(hog)
        sections = {"memory": {"limit": LIMIT, "clear_after": "1s", **memory}}
        with Server({"a": FAKE, "b": FAKE}, sampler=sampler, **sections) as one:
            yield hog, sampler, one


def keep_full(hog: Hog, sampler: HogSampler, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
    """The memory is full for so long, whatever the workers give back meanwhile."""
    end = time.monotonic() + seconds
    hog.fill(99.5)
    while time.monotonic() < end and not until():
        time.sleep(0.1)
        if sampler.seen[-1][1] < 99:
            hog.fill(99.5)


def emergencies(count: int) -> None:
    with crowded() as (hog, sampler, one):
        answers = [one.chat(name) for name in "ab" * 4]
        one.until(lambda: all(answer.begun.is_set() for answer in answers))
        for _ in range(count):
            keep_full(hog, sampler, 5.0)
            hog.leave()
            one.until(lambda: all(model.active == 4 for model in one.status().models) and len(one.status().models) == 2)
            time.sleep(1.0)
        endings = [answer.wait(300) for answer in answers]
        resumed = [event for _, event in one.of(events.AnswersResumed)]
    lost = [ending for ending in endings if not isinstance(ending, Finished)]
    short = [
        one.usage.completion_tokens
        for one in endings
        if isinstance(one, Finished) and one.usage.completion_tokens != LENGTH
    ]
    line(f"{count} emergencies of 5 s under 8 streams: streams lost", "0", str(len(lost)), ok=not lost)
    line("streams that are not whole", "0", str(len(short)), ok=not short)
    paused = [event.paused_s for event in resumed]
    text = f"{statistics.median(paused):.1f} s median, {max(paused):.1f} s longest" if paused else "none"
    line("pauses, the emergency's 5 s included", "", text, ok=None)


def long() -> None:
    patience_s = 8.0
    with crowded(patience=patience_s) as (hog, sampler, one):
        answers = [one.chat(name) for name in "ab" * 4]
        one.until(lambda: all(answer.begun.is_set() for answer in answers))
        began = time.monotonic()
        keep_full(hog, sampler, 60.0, until=lambda: all(answer.done.is_set() for answer in answers))
        endings = [answer.wait(1) for answer in answers]
        took_s = time.monotonic() - began
        hog.leave()
    failed = [ending.error for ending in endings if isinstance(ending, Failed)]
    told = [error for error in failed if error.status == 503 and error.details.get("used_percent", 0) > 90]
    line(
        f"an emergency longer than the patience of {patience_s:.0f} s: 503 with the figures",
        "8",
        str(len(told)),
        ok=len(told) == 8,
    )
    line("after", f"< {patience_s + 2:.0f} s", f"{took_s:.1f} s", ok=took_s < patience_s + 2)
    if failed:
        print(f"  {failed[0].message}")


# ---- emergencies of real engines

GROUP = 2048 * MIB
HOG_SCRIPT = Path(__file__).with_name("hog.py")


@contextmanager
def grouped(stay_s: float, **memory: Any) -> Iterator[tuple[Served, Callable[[], tuple[float, float]]]]:
    """A server in a control group, and what keeps the group full for ``stay_s``: it returns from when to when."""
    with tempfile.TemporaryDirectory() as name, ControlGroup(GROUP, ("server", "hog")) as group:
        where = {"folder": str(group.folder), "version": group.version, "limit_bytes": group.limit_bytes}
        hog = FillingHog(percent=98.7, stay_s=stay_s, refills=True, **where)
        with group.inside("hog"):
            command = [sys.executable, HOG_SCRIPT, json.dumps(asdict(hog))]
            filler = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert filler.stdin
        assert filler.stdout
        filler.stdout.readline()

        def fill() -> tuple[float, float]:
            assert filler.stdin
            assert filler.stdout
            print("go", file=filler.stdin, flush=True)
            filled, free = (float(filler.stdout.readline().split()[1]) for _ in range(2))
            return filled, free

        try:
            with group.inside("server"):
                one = server(Path(name), ("tiny", "hybrid"), clear_after="1s", **memory)
                served = one.__enter__()
            try:
                yield served, fill
                served.stop()
            finally:
                one.__exit__(None, None, None)
        finally:
            filler.kill()
            filler.wait()


def engines(count: int) -> None:
    with grouped(5.0) as (served, fill):
        _engines_survive(count, served, fill)


def engines_long() -> None:
    patience_s = 6
    with grouped(4.0 * patience_s, patience=f"{patience_s}s") as (served, fill):
        _engines_give_up(patience_s, served, fill)


def _engines_survive(count: int, served: Served, fill: Callable[[], tuple[float, float]]) -> None:
    clients = Clients(served, LONG_STREAMS)
    pids: set[int] = set()
    full: list[tuple[float, float]] = []
    with clients.streaming():
        for _ in range(count):
            until = time.monotonic() + 30
            while time.monotonic() < until and any(model["state"] != "busy" for model in served.models()):
                time.sleep(0.1)
            pids |= {model["pid"] for model in served.models() if model["pid"]}
            full.append(fill())
            time.sleep(2.0)
    refused = [told for _, told in clients.answers if told.refused]
    answers = [(kind, told) for kind, told in clients.answers if not told.refused]
    hit = sum(told.at[0] < filled < told.at[-1] for _, told in answers if told.at for filled, _ in full)
    stopped = f"{hit} answers, {len(pids)} workers seen before them"
    line(f"{count} emergencies of 5 s for two real engines; they hit", "", stopped, ok=hit > 0)
    line("new requests refused with 503 while memory was full", "", str(len(refused)), ok=None)
    judge(clients.wanted, answers, served.log)
    held = [
        min(after) - free
        for kind, told in answers
        for filled, free in full
        if told.at and told.at[0] < filled and (after := [at for at in told.at if at > free])
    ]
    if held:
        text = f"{statistics.median(held):.2f} s median, {max(held):.2f} s longest"
        line("from the end of an emergency to the next token", "", text, ok=None)


def _engines_give_up(patience_s: float, served: Served, fill: Callable[[], tuple[float, float]]) -> None:
    clients = Clients(served, LONG_STREAMS)
    with clients.streaming():
        time.sleep(1.0)
        filled, _ = fill()
    hit = [one for _, one in clients.answers if one.at and one.at[0] < filled < one.at[-1]]
    right = [one for one in hit if "insufficient_memory" in one.error and "used_percent" in one.error]
    title = f"answers that an emergency longer than {patience_s:.0f} s hit: error event with figures"
    line(title, str(len(hit)), str(len(right)), ok=len(right) == len(hit) > 0)
    for one in hit[:1] + [one for one in hit if one not in right][:3]:
        print(f"  {one.error[:600]}")


# ---- models that take turns


def turns() -> None:
    source = "fake:hold=300MiB,load_s=0.5,tokens_per_s=20,answer=la,length=20"
    limit = int((psutil.Process().memory_info().rss + 900 * MIB) / 0.95)
    with Server(dict.fromkeys("abc", source), memory={"limit": limit}) as one:
        began = time.monotonic()
        answers: list[Answer] = [one.chat(name) for name in ("abaacabc" * 3)[:20]]
        endings = [answer.wait(120) for answer in answers]
        took_s = time.monotonic() - began
        loads = [event.model for _, event in one.of(events.LoadStarted)]
    failed = [ending for ending in endings if not isinstance(ending, Finished)]
    line("20 requests A B A A C A B C at once where one fits: failed", "0", str(len(failed)), ok=not failed)
    line("loads", "3", f"{len(loads)} ({' '.join(loads)}) in {took_s:.1f} s", ok=len(loads) <= 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--emergencies", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", choices=("kills", "emergencies", "engines", "engines-long", "long", "turns"), action="append"
    )
    chosen = parser.parse_args()
    logging.getLogger().addHandler(logging.NullHandler())
    os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="plimsoll-bench-")
    parts: dict[str, Callable[[], None]] = {
        "turns": turns,
        "long": long,
        "emergencies": lambda: emergencies(chosen.emergencies),
        "engines": lambda: engines(chosen.emergencies),
        "engines-long": engines_long,
        "kills": lambda: kills(chosen.kills, chosen.seed),
    }
    print(f"{os.cpu_count()} cores; load {os.getloadavg()[0]:.1f} at the start")
    line("FIGURE", "TARGET", "VALUE", ok=None)
    for name, part in parts.items():
        if not chosen.only or name in chosen.only:
            try:
                part()
            except NoGroup as reason:
                print(reason)
    print(f"load {os.getloadavg()[0]:.1f} at the end; {len(SHORT)} of the targets missed")
    sys.exit(bool(SHORT))


if __name__ == "__main__":
    main()
