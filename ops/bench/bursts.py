"""Requests that come at once, 12 to 64: first tokens, gaps and tokens a second beside mlx_lm.server, in turns."""

import asyncio
import contextlib
import statistics
from typing import Any

import uvloop
from load import Answer, percentile, stream
from peers import MlxLmServer, Plimsoll, Setup, ask
from report import Report
from streams import Fresh, throughput

COUNTS = (12, 16, 24, 64)
MAX_TOKENS = 48
MOST_P50, MOST_P95, MOST_GAP = 0.7, 1.0, 1.5
# mlx_lm.server's listen queue holds 5 connections; its clients try again.
_TRIES, _PAUSE_S = 100, 0.1


def measure(setup: Setup, report: Report) -> None:
    """Every round is judged by itself, for a burst is what a user meets once."""
    fresh = Fresh()
    rates: dict[int, float] = {}
    with contextlib.ExitStack() as stack:
        ours, theirs = Plimsoll(setup), MlxLmServer(setup.dense)
        for peer in (ours, theirs):
            stack.callback(peer.close)
            ask(peer, fresh.prompts(2), 8)
        for count in COUNTS:
            rounds: list[tuple[list[Answer], list[Answer]]] = []
            for turn in range(setup.rounds):
                prompts = fresh.prompts(count)
                made = {peer.name: _burst(peer, prompts) for peer in ((ours, theirs) if turn % 2 else (theirs, ours))}
                rounds.append((made[ours.name], made[theirs.name]))
            rates[count] = statistics.median(throughput(mine) for mine, _ in rounds)
            _report(report, count, rounds)
    told = ", ".join(f"{rate:.1f}" for rate in rates.values())
    figure = f"tokens/s of Plimsoll at {', '.join(map(str, COUNTS))} at once"
    report.row(figure, "64: >= 16", told, ok=rates[64] >= rates[16])


def _report(report: Report, count: int, rounds: list[tuple[list[Answer], list[Answer]]]) -> None:
    for share, most in ((0.5, MOST_P50), (0.95, MOST_P95)):
        firsts = [[percentile([one.first_s for one in answers], share) for answers in made] for made in rounds]
        worst = max(firsts, key=lambda pair: pair[0] / pair[1])
        ratios = ", ".join(f"{mine / theirs:.2f}" for mine, theirs in firsts)
        report.row(
            f"{count} at once: p{100 * share:.0f} of first tokens, share of mlx_lm.server's by round",
            f"<= {most} in each",
            f"{ratios}; at worst {worst[0]:.2f} and {worst[1]:.2f} s",
            ok=worst[0] <= most * worst[1],
        )
    gaps = [[gap for made in rounds for one in made[index] for gap in one.gaps] for index in (0, 1)]
    mine, theirs = (percentile(one, 0.99) for one in gaps)
    report.row(
        f"{count} at once: p99 of gaps, Plimsoll and mlx_lm.server",
        f"<= {MOST_GAP} x theirs",
        f"{1e3 * mine:.0f} and {1e3 * theirs:.0f} ms ({mine / theirs:.2f} x)",
        ok=mine <= MOST_GAP * theirs,
    )


def _burst(peer: Plimsoll | MlxLmServer, prompts: list[list[dict[str, str]]]) -> list[Answer]:
    async def together() -> list[Answer]:
        return list(await asyncio.gather(*(_until_answered(peer, messages) for messages in prompts)))

    return uvloop.run(together())


async def _until_answered(peer: Plimsoll | MlxLmServer, messages: list[dict[str, str]]) -> Answer:
    """One answer; it was asked for when it was first tried."""
    body: dict[str, Any] = {"model": peer.model, "messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0}
    asked = 0.0
    for _ in range(_TRIES):
        answer = await stream(peer.host, peer.port, body)
        asked = asked or answer.asked
        if not answer.error:
            answer.asked = asked
            return answer
        await asyncio.sleep(_PAUSE_S)
    raise RuntimeError(f"{peer.name}: {answer.error}")
