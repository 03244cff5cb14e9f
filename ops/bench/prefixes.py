"""What the prefix store holds and gives back: two agents in turns, and ten clients with one system prompt.

On a tiny random model in this process, for what counts is tokens and bytes: ``python ops/bench/prefixes.py``.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache
from report import Report, machine

from plimsoll.engine.chat.prefix_store import tree
from plimsoll.engine.chat.prefix_store.pieces import Row
from plimsoll.engine.chat.prefix_store.prefix_store import PrefixStore
from plimsoll.engine.protocol import ChatRequest

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "engine"))
import mlx_helpers as helpers
import tiny_llama

CONTEXT = 1 << 16
MOST_ANSWER = 32_000
AGENT_TOKENS = 3_000
TURNS = 5
SYSTEM_TOKENS = 8_000
CLIENTS = 10
_WORDS = "the mark on her side shows how deep she may lie in the water when the wind is fair "


def text_of(engine: Any, tokens: int, salt: str) -> str:
    """About so many tokens that begin like nothing else."""
    one = len(engine.prepare(helpers.request(_WORDS * 10)).tokens) / 10
    return f"Log book {salt}. " + _WORDS * round(tokens / one)


def ask(engine: Any, messages: list[dict[str, str]], max_tokens: int, stop_after: int) -> tuple[str, Any]:
    """The answer's text, cut by its client after so many tokens, and what the request used."""
    run = helpers.Run(engine)
    run.submit("a", ChatRequest(messages, helpers.GREEDY, max_tokens))
    while engine.busy():
        run.step()
        if run.counts.get("a", 0) >= stop_after and "a" not in run.reasons:
            engine.cancel("a")
    return run.texts["a"], run.usage["a"]


def measure_agents(folder: Path, report: Report) -> None:
    """A B A B: how much of its earlier turn each turn finds, with room for one answer of ``MOST_ANSWER`` at a time."""
    engine = helpers.open_engine(folder, kv_bytes=0)
    talks: dict[str, list[dict[str, str]]] = {}
    shares = []
    for turn in range(TURNS):
        for agent in "AB":
            talk = talks.setdefault(agent, [{"role": "system", "content": text_of(engine, AGENT_TOKENS, agent)}])
            talk.append({"role": "user", "content": f"And now, step {turn}?"})
            before = len(engine.prepare(ChatRequest(talk[:-2], helpers.GREEDY)).tokens) if turn else 0
            said, usage = ask(engine, talk, MOST_ANSWER, 40)
            talk.append({"role": "assistant", "content": said})
            if turn:
                shares.append(usage.cached_tokens / before)
    report.row(
        f"two agents in turns, {AGENT_TOKENS} tokens each, max_tokens {MOST_ANSWER}: least reuse of the earlier turn",
        ">= 98 %",
        f"{min(shares):.1%}",
        ok=min(shares) >= 0.98,
    )
    engine.close()


def measure_clients(folder: Path, report: Report) -> None:
    """One system prompt, ten clients at once."""
    engine = helpers.open_engine(folder, kv_bytes=0)
    system = {"role": "system", "content": text_of(engine, SYSTEM_TOKENS, "of all")}
    store = helpers.store_of(engine)
    ask(engine, [system, {"role": "user", "content": "Hello."}], 8, 8)
    one_copy = store.nbytes
    run = helpers.Run(engine)
    for client in range(CLIENTS):
        question = {"role": "user", "content": f"Client {client} asks: what does mark number {client} show?"}
        run.submit(str(client), ChatRequest([system, question], helpers.GREEDY, 100))
    run.finish()
    engine.step()
    cached = [usage.cached_tokens for usage in run.usage.values()]
    report.row(
        f"{CLIENTS} clients with one system prompt of {SYSTEM_TOKENS} tokens: what the store holds, in copies of it",
        "<= 1.5",
        f"{store.nbytes / one_copy:.2f}, {min(cached)} tokens reused at least",
        ok=store.nbytes <= 1.5 * one_copy,
    )
    engine.close()


def measure_blocks(report: Report) -> None:
    """What cutting and putting together costs, by the size of blocks: 8,192 tokens of SmolLM2-135M's 30 layers."""
    caches = [KVCache() for _ in range(30)]
    for cache in caches:
        cache.update_and_fetch(mx.random.normal((1, 3, 8192, 64)), mx.random.normal((1, 3, 8192, 64)))
    mx.eval([cache.state for cache in caches])
    tokens = [index % 50_000 for index in range(8192)]
    for size in (64, 128, 256, 512):
        tree.BLOCK_TOKENS = sys.modules[PrefixStore.__module__].BLOCK_TOKENS = size  # type: ignore[attr-defined]
        store = PrefixStore(lambda: [KVCache() for _ in range(30)], 1 << 40)
        began = time.perf_counter()
        store.put(tokens, Row(caches))
        put = time.perf_counter()
        found = store.find([*tokens, 1])
        looked = time.perf_counter()
        mx.eval([cache.state for cache in store.take(found.held)])
        taken = time.perf_counter()
        report.row(
            f"blocks of {size} tokens: keep 8,192 tokens, look them up, put them together",
            "",
            f"{1e3 * (put - began):.0f} ms, {1e3 * (looked - put):.1f} ms, {1e3 * (taken - looked):.0f} ms",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", action="store_true", help="also what blocks cost by their size")
    options = parser.parse_args()
    report = Report()
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        folder = tiny_llama.build(Path(scratch) / "tiny", max_position_embeddings=CONTEXT)
        measure_agents(folder, report)
        measure_clients(folder, report)
    if options.blocks:
        measure_blocks(report)
    raise SystemExit(bool(report.missed))


if __name__ == "__main__":
    main()
