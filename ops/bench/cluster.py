"""What Ray's way costs, and what a lost node does: ``python ops/bench/cluster.py`` (under two minutes, loopback only).

Two nodes of Ray on this machine, which share its cores with the client: figures of the path, not of a network. Fake
models, so that nothing else takes time. Needs the extra ``cluster``.
"""

import asyncio
import contextlib
import itertools
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from load import Answer, percentile, stream
from ray_nodes import RayCluster, RayNode
from report import Report, machine
from served import Served

# By the ledgers ``one`` has room for three of them and ``two`` for two.
TALKERS = "abcd"
SETTINGS: dict[str, Any] = {
    "models": {
        "builtin": False,
        "entries": {
            "fast": {"source": "fake:answer=la,length=1000000,context=10000000"},
            "paced": {"source": "fake:answer=la,length=1000000,context=10000000,tokens_per_s=100"},
            **{name: {"source": f"fake:answer=la,length=100{ord(name)},tokens_per_s=20"} for name in TALKERS},
        },
    },
    "engine": {"spare_worker": False, "kv_budget": "200MiB"},
}
ROUNDS = 2
CHATS = 150
TOKENS = {1: 100_000, 16: 25_000}
PACED_TOKENS = 500
SPARE_MIB = 600
DEADLINE_S = 30.0


def main() -> None:
    """Measure and print one line per figure."""
    print(f"{machine()}, ray {metadata.version('ray')}")
    report = Report()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in ("direct", "cluster"):
            (folder / name).mkdir()
        cluster = RayCluster()
        stack.callback(cluster.close)
        options = ("--cluster",)
        settings = {**SETTINGS, "cluster": {"address": cluster.address}}
        through = stack.enter_context(Served(folder / "cluster", settings, options=options))
        direct = stack.enter_context(Served(folder / "direct", SETTINGS))
        until(lambda: len(nodes(through)) == 2, "both nodes")
        sides = {
            "direct": Side(direct, lambda: [direct.front, *direct.workers()]),
            "cluster": Side(through, lambda: [through.front, *cluster.one.processes(), *cluster.two.processes()]),
        }
        path(report, sides)
        direct.stop()
        memory(report, through, cluster)
        for name in ("fast", "paced"):
            through.unload(name)
        losses(report, through, cluster)
        through.stop()


# ---- the path


class Side:
    """A server and all processes that work for it."""

    def __init__(self, served: Served, processes: Callable[[], list[psutil.Process]]) -> None:
        self.served = served
        self._processes = processes

    def ask(self, model: str, count: int, max_tokens: int) -> list[Answer]:
        body = {"model": model, "max_tokens": max_tokens, "messages": [{"role": "user", "content": "hi"}]}

        async def all_of_them() -> list[Answer]:
            one = (stream(self.served.host, self.served.port, body, timed=False) for _ in range(count))
            return list(await asyncio.gather(*one))

        answers = asyncio.run(all_of_them())
        assert not any(one.error for one in answers), answers
        return answers

    def cpu_s(self) -> float:
        """Of all of them; those that end in between are not counted."""
        total = 0.0
        for one in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = one.cpu_times()
                total += times.user + times.system
        return total


def path(report: Report, sides: dict[str, Side]) -> None:
    """First tokens, tokens per second and CPU, the two taking turns."""
    firsts: dict[str, list[float]] = {name: [] for name in sides}
    rates: dict[tuple[str, int], list[float]] = {}
    costs: dict[tuple[str, int], list[float]] = {}
    for side in sides.values():
        for model in ("fast", "paced"):
            side.ask(model, 1, 1)
    for turn in range(ROUNDS):
        for name in sides if turn % 2 else reversed(sides):
            side = sides[name]
            firsts[name] += [side.ask("fast", 1, 1)[0].first_s for _ in range(CHATS)]
            for count, tokens in TOKENS.items():
                before = side.cpu_s()
                answers = side.ask("fast", count, tokens)
                made = sum(one.tokens for one in answers)
                took_s = max(one.ended for one in answers) - min(one.asked for one in answers)
                rates.setdefault((name, count), []).append(made / took_s)
                costs.setdefault((name, count), []).append((side.cpu_s() - before) / made)
    for name in sides:
        p50, p99 = (1000 * percentile(firsts[name], share) for share in (0.5, 0.99))
        report.row(
            f"{name}: first token of {len(firsts[name])} chats, one after the other",
            "",
            f"p50 {p50:.1f} ms, p99 {p99:.1f} ms",
        )
    for count, name in itertools.product(TOKENS, sides):
        rate, cost = (sum(table[name, count]) / ROUNDS for table in (rates, costs))
        report.row(
            f"{name}: {count} stream{'s' * (count > 1)} at full speed",
            "",
            f"{rate:,.0f} tokens/s, {1e6 * cost:.1f} us of CPU a token",
        )
    for name, side in sides.items():
        report.row(f"{name}: CPU, idle and with one stream of 100 tokens/s", "", paced(side))


def paced(side: Side) -> str:
    idle_s, began = side.cpu_s(), time.perf_counter()
    time.sleep(3)
    idle = (side.cpu_s() - idle_s) / (time.perf_counter() - began)
    busy_s, began = side.cpu_s(), time.perf_counter()
    side.ask("paced", 1, PACED_TOKENS)
    busy = (side.cpu_s() - busy_s) / (time.perf_counter() - began)
    return f"{100 * idle:.1f}% and {100 * busy:.1f}% of a core"


def memory(report: Report, through: Served, cluster: RayCluster) -> None:
    """PSS: what processes share counts once."""
    for node in (cluster.one, cluster.two):
        sizes = {"ray": 0.0, "node": 0.0}
        for process in node.processes():
            with contextlib.suppress(psutil.Error):
                command = " ".join(process.cmdline())
                if "plimsoll.engine.worker" not in command:
                    sizes["node" if "NodeServer" in command else "ray"] += process.memory_full_info().pss / 1e6
        report.row(
            f"memory (PSS) of the node {node.name}",
            "",
            f"Ray {sizes['ray']:.0f} MB, the node's process {sizes['node']:.0f} MB",
        )
    report.row("memory (PSS) of the front", "", f"{through.front.memory_full_info().pss / 1e6:.0f} MB")


# ---- nodes that go and come


class Talk(threading.Thread):
    """One long streamed chat; ``sentence`` is how it was refused or ended."""

    def __init__(self, served: Served, model: str) -> None:
        super().__init__(daemon=True)
        self.model = model
        self.first = self.ended = 0.0
        self.sentence = ""
        self._served = served
        self.start()

    def run(self) -> None:
        body = {"model": self.model, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
        with (
            contextlib.suppress(OSError),
            self._served.request("POST", "/v1/chat/completions", body, timeout_s=DEADLINE_S) as response,
        ):
            if response.status != 200:
                self.sentence = json.load(response)["error"]["message"]
            else:
                for chunk in _chunks(response):
                    if "error" in chunk:
                        self.sentence = chunk["error"]["message"]
                        break
                    if not self.first and chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                        self.first = time.monotonic()
        self.ended = time.monotonic()


def _chunks(lines: Any) -> Iterator[dict[str, Any]]:
    for raw in lines:
        if raw.startswith(b"data: {"):
            yield json.loads(raw[6:])


def losses(report: Report, served: Served, cluster: RayCluster) -> None:
    talks: dict[str, Talk] = {}
    for name in TALKERS:
        talks[name] = begun(served, name)
    held = nodes(served)
    assert not any(talk.ended for talk in talks.values()), [talk.sentence for talk in talks.values()]
    report.row("models that answer at the same time, which no node could hold", "", f"{len(talks)}: {_said(held)}")

    lost, killed = held["two"], time.monotonic()
    cluster.two.kill()
    until(lambda: all(talks[name].ended for name in lost), "the end of the lost streams")
    ended_s = max(talks[name].ended for name in lost) - killed
    report.row(f"kill -9 of a node: its {len(lost)} streams have ended after", "", f"{ended_s:.2f} s")
    print(f"  {talks[lost[0]].sentence}")
    again, refused = ask_again(served, lost)
    report.row("... and one of its models says its first word elsewhere after", "", f"{again.first - killed:.2f} s")
    report.row("... and the one that does not fit is refused after", "", f"{refused.ended - killed:.2f} s")
    print(f"  {refused.sentence}")
    others = [name for name in held["one"] if not talks[name].ended]
    report.row("streams of the other node that went on", "", f"{len(others)} of {len(held['one'])}")
    comes_back(report, served, cluster, refused.model)


def ask_again(served: Served, models: list[str]) -> tuple[Talk, Talk]:
    """As clients do that are told to: the answer of the one that came back, and a refusal of the one that did not."""
    talks = {name: Talk(served, name) for name in models}
    last: dict[str, Talk] = {}
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        back = next((talk for talk in talks.values() if talk.first), None)
        for name, talk in talks.items():
            if talk.ended and talk is not back:
                last[name] = talk
                talks[name] = Talk(served, name)
        refused = next((talk for talk in last.values() if back and talk.model != back.model), None)
        if back and refused and refused.ended > back.first:
            return back, refused
        time.sleep(0.05)
    raise AssertionError(f"not in {DEADLINE_S:.0f} s: one model elsewhere; {[one.sentence for one in last.values()]}")


def begun(served: Served, model: str) -> Talk:
    talk = Talk(served, model)
    until(lambda: talk.first or talk.ended, f"the first word of {model}")
    assert talk.first, talk.sentence
    return talk


def comes_back(report: Report, served: Served, cluster: RayCluster, model: str) -> None:
    joined = [joined_s(served, cluster.start_two())]
    asked = time.monotonic()
    first_s = begun(served, model).first - asked
    joined += [joined_s(served, cluster.start(name, SPARE_MIB)) for name in ("three", "four")]
    said = ", ".join(f"{one:.2f}" for one in joined)
    report.row(
        "a node that comes is in use after, from the end of ray start", "<= 3 s", f"{said} s", ok=max(joined) <= 3
    )
    report.row("... and the refused model says its first word there after", "", f"{first_s:.2f} s")


def joined_s(served: Served, node: RayNode) -> float:
    until(lambda: "Ray runtime started" in node.log.read_text(), "Ray's start")
    began = time.monotonic()
    until(lambda: node.name in nodes(served), "the node that came")
    return time.monotonic() - began


def nodes(served: Served) -> dict[str, list[str]]:
    """The models of each node, by its name."""
    return {one["name"]: one["models"] for one in served.health().get("nodes", [])}


def _said(held: dict[str, list[str]]) -> str:
    return ", ".join(f"{len(models)} on {name}" for name, models in held.items())


def until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not in {DEADLINE_S:.0f} s: {what}")
        time.sleep(0.02)


if __name__ == "__main__":
    main()
