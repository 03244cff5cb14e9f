"""Tokens per second, first tokens and gaps over 1 to 32 streams, the candidates taking turns."""

import contextlib
import random
import statistics
from pathlib import Path

from load import Answer, percentile
from peers import Ceiling, MlxLmServer, Peer, Plimsoll, Setup, ask, half_precision
from report import Report

WORDS = [
    "sea",
    "harbour",
    "dawn",
    "mast",
    "wind",
    "captain",
    "island",
    "lighthouse",
    "storm",
    "whale",
    "map",
    "treasure",
    "night",
    "star",
    "tide",
    "sailor",
    "rope",
    "anchor",
]
COUNTS = (1, 2, 4, 8, 16, 32)
MAX_TOKENS = 64
SHARE_OF_CEILING = {1: 0.97, 8: 1.05, 16: 1.05}
FASTER_THAN_FLOAT16 = 30


class Fresh:
    """Prompts of about 60 tokens that nobody has seen; the model's system prompt is in all of them."""

    def __init__(self) -> None:
        self._count = 0

    def prompts(self, count: int) -> list[list[dict[str, str]]]:
        return [[{"role": "user", "content": self._story()}] for _ in range(count)]

    def _story(self) -> str:
        self._count += 1
        words = " and ".join(random.Random(self._count).sample(WORDS, 8))
        return f"Story number {self._count}: tell me a long story about {words}."


def throughput(answers: list[Answer]) -> float:
    """Tokens per second from the first request to the last token."""
    took_s = max(one.ended for one in answers) - min(one.asked for one in answers)
    return sum(one.tokens for one in answers) / took_s


def measure(setup: Setup, report: Report) -> None:
    """Fresh prompts of all three, on the same weights."""
    fresh = Fresh()
    with contextlib.ExitStack() as stack:
        peers: list[Peer] = [Ceiling(setup.dense), Plimsoll(setup), MlxLmServer(setup.dense)]
        for peer in peers:
            stack.callback(peer.close)
            ask(peer, fresh.prompts(2), 8)
        for count in COUNTS:
            runs: dict[str, list[list[Answer]]] = {peer.name: [] for peer in peers}
            for turn in range(setup.rounds):
                prompts = fresh.prompts(count)
                for peer in peers if turn % 2 else reversed(peers):
                    runs[peer.name].append(ask(peer, prompts, MAX_TOKENS))
            _report(report, count, runs)


def _report(report: Report, count: int, runs: dict[str, list[list[Answer]]]) -> None:
    ceiling, ours, theirs = (runs[peer.name] for peer in (Ceiling, Plimsoll, MlxLmServer))
    streams = f"{count} stream{'s' * (count > 1)}"
    for name, made in runs.items():
        report.point("tokens/s", name, count, statistics.median(map(throughput, made)))
    shares = [statistics.median(_ratios(made, ceiling)) for made in (ours, theirs)]
    figures = ", ".join(f"{statistics.median(map(throughput, made)):.1f}" for made in (ours, theirs, ceiling))
    report.row(
        f"{streams}: tokens/s of Plimsoll, mlx_lm.server, the raw loop",
        "",
        f"{figures} (mlx_lm.server {shares[1]:.2f} of the loop)",
    )
    least = SHARE_OF_CEILING.get(count)
    report.row(
        f"{streams}: share of the raw loop",
        f">= {least}" if least else "",
        f"{shares[0]:.3f}",
        ok=shares[0] >= least if least else None,
    )
    first = [statistics.median(one.first_s for answers in made for one in answers) for made in (ours, theirs)]
    gaps = [[gap for answers in made for one in answers for gap in one.gaps] for made in (ours, theirs)]
    p50, p99 = ([1e3 * percentile(one, share) for one in gaps] for share in (0.5, 0.99))
    report.row(
        f"{streams}: first token after, Plimsoll and mlx_lm.server (median)",
        "<= 0.8 of theirs" if count == 8 else "",
        f"{1e3 * first[0]:.0f} ms, {1e3 * first[1]:.0f} ms ({first[0] / first[1]:.2f})",
        ok=first[0] <= 0.8 * first[1] if count == 8 else None,
    )
    report.row(
        f"{streams}: gaps p50 and p99, Plimsoll and mlx_lm.server",
        "p99 <= theirs, <= 3 x p50" if count == 8 else "",
        f"{p50[0]:.0f} and {p99[0]:.0f} ms, {p50[1]:.0f} and {p99[1]:.0f} ms",
        ok=p99[0] <= p99[1] and p99[0] <= 3 * p50[0] if count == 8 else None,
    )


def _ratios(made: list[list[Answer]], ceiling: list[list[Answer]]) -> list[float]:
    """Pair by pair, for the machine's noise is larger than what is looked for."""
    return [throughput(one) / throughput(other) for one, other in zip(made, ceiling, strict=True)]


def measure_quantized(setup: Setup, report: Report) -> None:
    """The 4-bit model, as it is installed here and all in float16 as models are published."""
    _quantized(setup, report, setup.quantized, "as installed, with float32 norms", None)
    half = half_precision(setup.quantized, setup.scratch / "half")
    _quantized(setup, report, half, "all in float16", FASTER_THAN_FLOAT16)


def _quantized(setup: Setup, report: Report, folder: Path, what: str, target: int | None) -> None:
    fresh = Fresh()
    with contextlib.ExitStack() as stack:
        ours, theirs = Plimsoll(setup, folder=folder), MlxLmServer(folder)
        for peer in (ours, theirs):
            stack.callback(peer.close)
        ask(ours, fresh.prompts(1), 4)
        fast = statistics.median(throughput(ask(ours, fresh.prompts(1), MAX_TOKENS)) for _ in range(setup.rounds))
        # Its prompt alone may take minutes there, so it gets one word and few tokens: that is in its favour.
        (slow,) = ask(theirs, [[{"role": "user", "content": "Hi"}]], 4)
    decode = (slow.tokens - 1) / (slow.ended - slow.times[0]) if len(slow.times) > 1 else throughput([slow])
    report.row(
        f"4-bit model {what}: tokens/s of Plimsoll and mlx_lm.server (decode only)",
        f">= {target} x" if target else "",
        f"{fast:.1f}, {decode:.2f}: {fast / decode:.0f} x",
        ok=fast >= target * decode if target else None,
    )
