"""Whether the room for KV caches follows the work: long prompts, more conversations than fit, and many requests.

``python ops/bench/leases.py [long] [full] [many] [fair]``, all of them by default. On tiny random models whose answers
never end by themselves, behind a server of its own; ``full`` takes up to 3 GiB of memory. Exits with 1 when a target is
missed.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import uvloop
from inside import Background, footprint
from load import Answer, percentile, stream
from report import Report, machine
from served import Served

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import tiny_llama

CONTEXT = 131_072
LONG_TOKENS = 100_000
MOST_ANSWER = 32_000
LIMIT_GIB = 3
CONVERSATIONS = 8
CONVERSATION_TOKENS = 10_000
ANSWER_TOKENS = 1_500
CRITICAL = 0.95
REQUESTS = 2_000
WARM_REQUESTS = 200
AT_ONCE = 8
_LOOK_S = 0.05
_SLICE = 100


def endless(folder: Path, **different: Any) -> Path:
    """A tiny model whose end-of-text token is never the likeliest one."""
    tiny_llama.build(folder, max_position_embeddings=CONTEXT, **different)
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    weights["lm_head.weight"][json.loads((folder / "config.json").read_text())["eos_token_id"]] = 0
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return folder


def prompt(tokens: int, salt: str) -> str:
    """A text of about so many tokens that begins like nothing else."""
    return f"{salt} " + "dog " * tokens


def body(model: str, content: str, max_tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}


class Use(Background):
    """What the server and its workers hold together, over a limit."""

    def __init__(self, served: Served, limit_bytes: int) -> None:
        super().__init__(_LOOK_S)
        self._served = served
        self._limit_bytes = limit_bytes
        self.seen: list[tuple[float, float]] = []  # time, share of the limit

    def look(self) -> None:
        pids = [self._served.process.pid, *(one.pid for one in self._served.workers())]
        self.seen.append((time.perf_counter(), sum(map(footprint, pids)) / self._limit_bytes))

    def show(self, served_s: float) -> None:
        """The course of it, in at most forty points."""
        for at, share in self.seen[:: max(1, len(self.seen) // 40)]:
            print(f"  {at - served_s:6.1f} s {share:6.1%}")

    def most(self, until: float | None = None) -> float:
        return max((share for at, share in self.seen if until is None or at <= until), default=0.0)


def measure_long(folder: Path, scratch: Path, report: Report) -> None:
    """One prompt of 100,000 tokens at the default configuration."""
    model = endless(folder / "long", num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
    with Served(scratch, {"models": {"entries": {"long": {"source": str(model)}}}}) as served:
        served.load("long")
        ask = body("long", prompt(LONG_TOKENS, "of a long voyage"), MOST_ANSWER)
        answer = uvloop.run(_first_tokens(served, ask, 10))
        first = f"first token after {answer.first_s:.0f} s" if answer.times else answer.error
        report.row(
            f"a prompt of {LONG_TOKENS:,} tokens with max_tokens {MOST_ANSWER}",
            "200",
            f"{answer.status}, {first}",
            ok=answer.status == 200 and bool(answer.times),
        )


async def _first_tokens(served: Served, ask: dict[str, Any], tokens: int) -> Answer:
    answer = Answer()
    task = asyncio.create_task(stream(served.host, served.port, ask, answer=answer))
    while not task.done() and len(answer.times) < tokens:  # noqa: ASYNC110 - it is looked at while it grows
        await asyncio.sleep(0.05)
    task.cancel()
    return answer


def measure_full(
    folder: Path,
    scratch: Path,
    report: Report,
    gib: int = LIMIT_GIB,
    *,
    answer_tokens: int = ANSWER_TOKENS,
    show: bool = False,
) -> None:
    """Eight conversations that do not fit into memory together."""
    # 48 KiB of KV cache for a token: eight times 10,000 tokens take 3.7 GiB. Of many layers, as real models are: where
    # rows join or leave, one layer's old and new arrays are in memory together.
    model = endless(folder / "full", num_hidden_layers=24, num_attention_heads=2, num_key_value_heads=2, head_dim=128)
    settings = {
        "models": {"entries": {"full": {"source": str(model)}}},
        "memory": {"limit": f"{gib}GiB"},
        "server": {"keepalive": "200ms"},
    }
    tokens = CONVERSATION_TOKENS * gib // LIMIT_GIB
    with Served(scratch, settings) as served, Use(served, gib << 30) as use:
        served.load("full")
        answers = uvloop.run(_conversations(served, tokens, answer_tokens))
        if show:
            use.show(min(one.asked for one in answers))
        refused = [answer.error for answer in answers if answer.error or answer.tokens != answer_tokens]
        what = f"{CONVERSATIONS} conversations of {tokens:,} tokens in {gib} GiB"
        report.row(
            f"{what}: not answered in full", "0", f"{len(refused)} {sorted(set(refused))[:2] or ''}", ok=not refused
        )
        report.row(
            f"{what}: most use, seen every {1e3 * _LOOK_S:.0f} ms",
            f"< {CRITICAL:.0%}",
            f"{use.most():.1%}",
            ok=use.most() < CRITICAL,
        )
        # A comment comes up to a second after its pause: the answer had paused by its last token before it.
        pauses = [
            max(said for said in answer.times if said < at)
            for answer in answers
            for at in answer.held
            if answer.times and at > answer.times[0]
        ]
        waits = [at for answer in answers for at in answer.held]
        before = use.most(min(pauses, default=None))
        report.row(
            f"{what}: use before the first answer paused",
            "> 85 %",
            f"{before:.1%}, {len(pauses)} comments in pauses, {len(waits)} in all",
            ok=before > 0.85,
        )
        first, last = min(one.asked for one in answers), max(one.ended for one in answers)
        report.row(f"{what}: time for all, {answer_tokens:,} tokens each", "", f"{last - first:.0f} s")


async def _conversations(served: Served, tokens: int, answer_tokens: int) -> list[Answer]:
    asks = [body("full", prompt(tokens, f"voyage {n}"), answer_tokens) for n in range(CONVERSATIONS)]
    return await asyncio.gather(*(stream(served.host, served.port, ask, patience_s=1200.0) for ask in asks))


def measure_many(folder: Path, scratch: Path, report: Report) -> None:
    """Two thousand requests of all lengths, some of which are left early."""
    model = endless(folder / "many", num_hidden_layers=1)
    settings = {
        "models": {"entries": {"many": {"source": str(model)}}},
        "engine": {"prompt_cache": "16MiB", "disk_cache": 0},
    }
    with Served(scratch, settings) as served:
        served.load("many")
        chance = random.Random(1)
        held = []
        for _ in range(REQUESTS // _SLICE):
            broken = uvloop.run(_mixed(served, chance))
            (worker,) = [one for one in served.models() if one["state"] in ("ready", "busy")]
            held.append(footprint(worker["pid"]) / 1e6)
            if broken:
                report.row("mixed requests that broke", "0", f"{broken[:2]}", ok=False)
                return
        early, late = held[WARM_REQUESTS // _SLICE :][:3], held[-3:]
        grown = statistics.median(late) - statistics.median(early)
        report.row(
            f"{REQUESTS} mixed requests: the worker's memory after {WARM_REQUESTS}, at the end",
            "+ <= 5 %",
            f"{statistics.median(early):.0f} MB, {statistics.median(late):.0f} MB",
            ok=grown <= 0.05 * statistics.median(early),
        )


async def _mixed(served: Served, chance: random.Random) -> list[str]:
    """A slice of them; returns the errors."""
    places, errors = asyncio.Semaphore(AT_ONCE), []

    async def one() -> None:
        tokens, most = chance.choice((5, 50, 300, 1500)), chance.choice((1, 8, 30, 60))
        ask = body("many", prompt(tokens, f"of {chance.random()}"), most)
        async with places:
            if chance.random() < 0.1:
                answer = await _first_tokens(served, {**ask, "max_tokens": 5000}, 3)
            else:
                answer = await stream(served.host, served.port, ask)
        if answer.status != 200 or (answer.error and answer.tokens):
            errors.append(answer.error or str(answer.status))

    await asyncio.gather(*(one() for _ in range(_SLICE)))
    return errors


def measure_fair(folder: Path, scratch: Path, report: Report) -> None:
    """Others beside a prompt of 20,000 tokens."""
    model = endless(folder / "fair", num_hidden_layers=4, hidden_size=256, num_attention_heads=4, num_key_value_heads=4)
    with Served(
        scratch, {"models": {"entries": {"fair": {"source": str(model)}}}, "engine": {"disk_cache": 0}}
    ) as served:
        served.load("fair")
        uvloop.run(_fair(served, report))


async def _fair(served: Served, report: Report) -> None:
    def ask(tokens: int, salt: str, most: int = 2) -> Any:
        return stream(served.host, served.port, body("fair", prompt(tokens, f"{salt} {time.time()}"), most))

    await ask(50, "warm")
    long_s = (await ask(20_000, "long alone")).first_s
    short_s = statistics.median([(await ask(50, f"short {n}")).first_s for n in range(5)])
    chunk_s = long_s / (20_000 / 160)
    late = asyncio.create_task(ask(20_000, "long beside"))
    shorts = []
    while not late.done() and len(shorts) < 5:
        await asyncio.sleep(min(1.0, long_s / 10))
        shorts.append((await ask(50, f"beside {len(shorts)}")).first_s)
    beside_s = statistics.median(shorts)
    bound_s = 2 * short_s + chunk_s
    report.row(
        "a short request beside a prompt of 20,000 tokens: first token",
        f"<= {1e3 * bound_s:.0f} ms",
        f"{1e3 * beside_s:.0f} ms, alone {1e3 * short_s:.0f} ms, a chunk takes about {1e3 * chunk_s:.0f} ms",
        ok=beside_s <= bound_s,
    )
    late_s = (await late).first_s
    report.row(
        "that prompt: first token beside them, alone",
        "<= 1.3 x",
        f"{late_s:.1f} s, {long_s:.1f} s ({late_s / long_s:.2f} x)",
        ok=late_s <= 1.3 * long_s,
    )
    streams = [Answer() for _ in range(4)]
    ask_stream = [body("fair", f"tell story {n}", 20_000) for n in range(4)]
    tasks = [
        asyncio.create_task(stream(served.host, served.port, one, answer=answer))
        for one, answer in zip(ask_stream, streams, strict=True)
    ]
    while min(len(one.times) for one in streams) < 300:  # noqa: ASYNC110 - they are looked at while they grow
        await asyncio.sleep(0.05)
    began = time.perf_counter()
    await ask(20_000, "long beside streams")
    ended = time.perf_counter()
    for task in tasks:
        task.cancel()
    gaps = [pair for one in streams for pair in itertools.pairwise(one.times[20:])]
    quiet = [b - a for a, b in gaps if b < began]
    beside = [b - a for a, b in gaps if a >= began and b <= ended]
    p99, calm = percentile(beside, 0.99), percentile(quiet, 0.99)
    report.row(
        "gaps of four running streams beside such a prompt: p99, quiet p99",
        "<= 4 x",
        f"{1e3 * p99:.0f} ms, {1e3 * calm:.0f} ms ({p99 / calm:.1f} x)",
        ok=p99 <= 4 * calm,
    )


PARTS: dict[str, Any] = {"long": measure_long, "full": measure_full, "many": measure_many, "fair": measure_fair}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="what is measured; all by default")
    parser.add_argument("--gib", type=int, default=LIMIT_GIB, help="limit of `full`, whose prompts shrink with it")
    parser.add_argument("--answer", type=int, default=ANSWER_TOKENS, help="tokens of each answer in `full`")
    parser.add_argument("--show", action="store_true", help="the course of memory use in `full`")
    options = parser.parse_args()
    report = Report()
    print(machine(), f"load {os.getloadavg()[0]:.1f}", sep="\n")
    for part in options.parts or PARTS:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "models"
            more = {"gib": options.gib, "answer_tokens": options.answer, "show": options.show} if part == "full" else {}
            PARTS[part](folder, Path(scratch), report, **more)
    print(f"load {os.getloadavg()[0]:.1f}")
    raise SystemExit(bool(report.missed))


if __name__ == "__main__":
    main()
