"""Long prompts beside running answers, and the later turns of a chat."""

import asyncio
import contextlib
import itertools
import statistics
import time
from dataclasses import dataclass
from typing import Any

import uvloop
from load import Answer, percentile, stream
from peers import Message, MlxLmServer, Plimsoll, Setup, ask
from report import Report

SENTENCE = "The mark on her side shows how deep she may lie in the water when the wind is fair and the hold is full. "
TOKENS_A_SENTENCE = 25
TURNS = 10
_SETTLED_TOKENS = 40
_FIRST_GAPS = 8
MOST_FIRST, MOST_GAP = 1.3, 0.2


def text_of(tokens: int, salt: str) -> str:
    """About so many tokens that begin like nothing else."""
    return f"Log book {salt}. " + SENTENCE * (tokens // TOKENS_A_SENTENCE) + "What does the mark show?"


def measure_admission(setup: Setup, report: Report) -> None:
    """One answer streams while a prompt of 4,000 tokens comes in."""
    ours = Plimsoll(setup)
    with contextlib.closing(ours):
        ask(ours, [[{"role": "user", "content": "Hello"}]], 4)
        quiet, beside, late = [], [], []
        for turn in range(setup.rounds):
            made = uvloop.run(_admit(ours, turn, streams=1))
            quiet += made.alone
            beside += made.during
            late.append(made.late)
    p50, p99 = percentile(quiet, 0.5), percentile(beside, 0.99)
    report.row(
        "gap of a running stream while a 4,000-token prompt is read: quiet p50, p99",
        "p99 <= 3 x",
        f"{1e3 * p50:.0f} ms, {1e3 * p99:.0f} ms ({p99 / p50:.1f} x), {len(beside)} gaps",
        ok=p99 <= 3 * p50,
    )
    first_s = statistics.median(one.first_s for one in late)
    report.row("that prompt: tokens, first token after", "", f"{late[-1].prompt_tokens}, {first_s:.1f} s")


def measure_beside(setup: Setup, report: Report) -> None:
    """Four answers stream while a prompt of 4,000 tokens comes in, here and at mlx_lm.server in turns."""
    made: dict[str, list[_Admitted]] = {}
    with contextlib.ExitStack() as stack:
        ours, theirs = Plimsoll(setup), MlxLmServer(setup.dense)
        for peer in (ours, theirs):
            stack.callback(peer.close)
            ask(peer, [[{"role": "user", "content": "Hello"}]], 4)
        for turn in range(setup.rounds):
            for peer in (ours, theirs) if turn % 2 else (theirs, ours):
                made.setdefault(peer.name, []).append(uvloop.run(_admit(peer, turn, streams=4)))
    first, gap = (
        [statistics.median(figure(one) for one in made[peer.name]) for peer in (ours, theirs)]
        for figure in (lambda one: one.late.first_s, lambda one: max(one.during))
    )
    for what, (mine, other), most in (
        ("its first token", first, MOST_FIRST),
        ("the largest gap of the four", gap, MOST_GAP),
    ):
        report.row(
            f"a 4,000-token prompt beside 4 streams: {what}, Plimsoll and mlx_lm.server",
            f"<= {most} x theirs",
            f"{mine:.1f} s, {other:.1f} s ({mine / other:.2f} x)",
            ok=mine <= most * other,
        )


@dataclass
class _Admitted:
    """Gaps of running answers, ``alone`` and ``during`` the reading of the prompt that came ``late``; seconds."""

    alone: list[float]
    during: list[float]
    late: Answer


async def _admit(peer: Plimsoll | MlxLmServer, turn: int, *, streams: int) -> _Admitted:
    def body(content: str, max_tokens: int) -> dict[str, Any]:
        messages = [{"role": "user", "content": content}]
        return {"model": peer.model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}

    running = [Answer() for _ in range(streams)]
    tasks = [
        asyncio.create_task(stream(peer.host, peer.port, body(_story(turn, index), 1500), answer=one))
        for index, one in enumerate(running)
    ]
    while min(len(one.times) for one in running) < _SETTLED_TOKENS:  # noqa: ASYNC110 - looked at while they grow
        await asyncio.sleep(0.05)
    began = time.perf_counter()
    late = await stream(peer.host, peer.port, body(text_of(4000, f"of voyage {turn} {time.time()}"), 2))
    ended = time.perf_counter()
    for task in tasks:
        task.cancel()
    gaps = [pair for one in running for pair in itertools.pairwise(one.times)]
    alone = [b - a for a, b in gaps if b < began]
    # A gap that reaches beyond the first token is as long for who waits in it.
    during = [b - a for a, b in gaps if b > began and a < ended]
    return _Admitted(alone[_FIRST_GAPS:], during, late)


def _story(turn: int, index: int) -> str:
    return f"Story {turn} of {index}: tell me a very long story, with numbers from 1 to 500 in it."


def measure_turns(setup: Setup, report: Report) -> None:
    """A chat that begins with 2,000 tokens and goes on for ten turns; and once more after the model was unloaded."""
    with contextlib.ExitStack() as stack:
        ours, theirs = Plimsoll(setup), MlxLmServer(setup.dense)
        for peer in (ours, theirs):
            stack.callback(peer.close)
            ask(peer, [[{"role": "user", "content": "Hello"}]], 4)
        for peer in (ours, theirs):
            turns, messages = _chat(peer, setup)
            first, second = turns[0].first_s, turns[1].first_s
            report.row(
                f"{peer.name}: 2,000-token chat, first token of turn 1, of turn 2",
                "<= 10 %" if peer is ours else "",
                f"{first:.2f} s, {second:.2f} s ({100 * second / first:.1f} %)",
                ok=second <= 0.1 * first if peer is ours else None,
            )
            cached, prompt = (sum(getattr(one, what) for one in turns[1:]) for what in ("cached", "prompt_tokens"))
            later_s = statistics.median(one.first_s for one in turns[1:])
            report.row(
                f"{peer.name}: turns 2 to {TURNS}, share of the prompt that was in the cache",
                "",
                f"{cached / prompt:.1%}, first token after {later_s:.2f} s",
            )
            if peer is ours:
                time.sleep(4)  # it puts conversations away while it is idle
                ours.served.unload(ours.model)
                ours.served.load(ours.model)
                (after,) = ask(ours, [[*messages, {"role": "user", "content": "Say that again."}]], 8)
                found = f"{after.cached} of {after.prompt_tokens} tokens"
                report.row(
                    "the same chat after an unload: first token, in the cache",
                    "",
                    f"{after.first_s:.2f} s ({after.first_s / first:.1%} of turn 1), {found}",
                )


def _chat(peer: Plimsoll | MlxLmServer, setup: Setup) -> tuple[list[Answer], list[Message]]:
    messages: list[Message] = [{"role": "user", "content": text_of(2000, f"of the {peer.name} {setup.scratch.name}")}]
    turns = []
    for number in range(TURNS):
        (answer,) = ask(peer, [messages], 32, texts=True)
        turns.append(answer)
        messages.append({"role": "assistant", "content": answer.text})
        messages.append({"role": "user", "content": f"And what else? Tell me thing number {number}."})
    return turns, messages[:-1]
