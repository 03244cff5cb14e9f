"""What one stream's step costs beside mlx-lm's raw loop, in one process and in turns, and where its time goes.

``python ops/bench/one_stream.py [--rounds 5]`` generates 64 tokens of the built-in model with the engine as a worker
steps it, frames included, and with ``BatchGenerator`` alone, on the same weights, BLAS and functions.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from ceiling import run as raw_loop
from in_process import builtin_folder, with_worker_environment
from mlx.utils import tree_flatten
from report import Report

from plimsoll.engine.chat.engine import MlxEngine
from plimsoll.engine.protocol import ChatRequest, EngineOptions, Sampling, Step, encode

TOKENS = 64
LEAST = 0.97
PROMPT = "Tell me a long story about a ship that is lost in the fog, about her captain, and about the people who wait."
PROBE_BYTES = 256 * 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=Path, help="a file that gets the rows of the table, for speed.py")
    options = parser.parse_args()
    report = Report()
    with_worker_environment()
    folder = builtin_folder()
    engine = MlxEngine(EngineOptions(cache_dir="", dequantize=True, prompt_cache_bytes=0, prompt_lookup=False))
    engine.load(folder, lambda *_: None)
    loaded = engine._model.loaded  # noqa: SLF001 - it is measured
    print(f"load average {os.getloadavg()[0]:.1f}")
    ours: list[float] = []
    raw: list[float] = []
    spent: Counter[str] = Counter()
    generate(engine)
    for index in range(options.rounds):
        for kind in ("ours", "raw") if index % 2 else ("raw", "ours"):
            if kind == "ours":
                ours.append(gap_ms(generate(engine)))
            else:
                tokens = loaded.tokenizer.apply_chat_template(messages(), add_generation_prompt=True)
                raw.append(gap_ms(raw_loop(loaded.model, loaded.tokenizer, [tokens], TOKENS)["times"][0]))
        with timed(loaded.model, spent):
            generate(engine, spent)
    share = statistics.median(theirs / mine for theirs, mine in zip(raw, ours, strict=True))
    report.row(
        "one stream in one process: a token of the engine, of the raw loop",
        f"share >= {LEAST}",
        f"{statistics.median(ours):.1f}, {statistics.median(raw):.1f} ms: {share:.3f}",
        ok=share >= LEAST,
    )
    parts = (
        f"{name} {1e3 * spent[name] / spent['steps']:.2f} ms ({spent[name] / spent['all']:.1%})"
        for name in ("the graph", "computing", "the rest", "the frame")
    )
    report.row("a step of one stream", "", ", ".join(parts))
    weights = sum(one.nbytes for _, one in tree_flatten(loaded.model.parameters()))
    least_ms = 1e3 * weights / bandwidth()
    report.row(
        "reading all weights once, at the memory's measured speed", "", f"{weights / 1e6:.0f} MB, {least_ms:.1f} ms"
    )
    print(f"load average {os.getloadavg()[0]:.1f}")
    if options.rows:
        options.rows.write_text(json.dumps(report.rows), encoding="utf-8")
    return min(len(report.missed), 1)


def messages() -> list[dict[str, Any]]:
    return [{"role": "user", "content": PROMPT}]


def gap_ms(times: list[float]) -> float:
    """The median time between two tokens: a program beside this one prolongs some of them."""
    return 1e3 * statistics.median(later - earlier for earlier, later in itertools.pairwise(times))


def generate(engine: MlxEngine, spent: Counter[str] | None = None) -> list[float]:
    """The times of the tokens, each with its frame encoded as for the front; ``spent`` gets seconds."""
    engine.submit("only", engine.prepare(ChatRequest(messages(), Sampling(temperature=0), max_tokens=TOKENS)))
    times: list[float] = []
    while engine.busy():
        before = Counter(spent)
        began_s = time.perf_counter()
        events = engine.step()
        stepped_s = time.perf_counter()
        for event in events:
            encode(event)
        ended_s = time.perf_counter()
        if any(isinstance(event, Step) and event.tokens for event in events):
            times.append(ended_s)
            if spent is not None and len(times) > 1:
                inside = sum(spent[name] - before[name] for name in ("the graph", "computing"))
                spent["the rest"] += stepped_s - began_s - inside
                spent["the frame"] += ended_s - stepped_s
                spent["all"] += ended_s - began_s
                spent["steps"] += 1
                continue
        if spent is not None:  # the prompt's steps are not counted
            spent.clear()
            spent.update(before)
    return times


@contextlib.contextmanager
def timed(model: Any, spent: Counter[str]) -> Iterator[None]:
    """Note the seconds in the model's Python and in MLX's evaluation."""

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            began_s = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] += time.perf_counter() - began_s

        return wrapper

    kind, before = type(model), (type(model).__call__, mx.eval, mx.async_eval)
    kind.__call__ = noted("the graph", before[0])
    mx.eval, mx.async_eval = (noted("computing", one) for one in before[1:])
    try:
        yield
    finally:
        kind.__call__, mx.eval, mx.async_eval = before


def bandwidth() -> float:
    """Bytes of memory that the BLAS reads in a second, at best."""
    numbers = np.ones(PROBE_BYTES // 4, np.float32)
    taken: list[float] = []
    for _ in range(5):
        began_s = time.perf_counter()
        np.dot(numbers, numbers)
        taken.append(time.perf_counter() - began_s)
    return PROBE_BYTES / min(taken)


if __name__ == "__main__":
    sys.exit(main())
