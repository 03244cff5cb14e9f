"""What prompt lookup gains, on the built-in model in this process, with and without in turns.

``python ops/bench/lookup.py [--rounds 3]`` has a file of about 300 tokens written again with three values changed,
greedily and with a seed, and free text of 150 tokens; it prints the seconds of each, the ratio, and whether the tokens
are the same.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
from in_process import builtin_folder, with_worker_environment
from report import Report

from plimsoll.engine.chat.engine import MlxEngine
from plimsoll.engine.chat.prompt_lookup import PromptLookup
from plimsoll.engine.protocol import ChatRequest, EngineOptions, Sampling, Step

NAMES = ("fox", "ship", "harbour", "lantern", "anchor", "compass", "barrel", "rope", "sail", "mast", "deck", "cargo")
FILE = "".join(f'{name}_size = {17 * index + 3}\n{name}_label = "the {name}"\n' for index, name in enumerate(NAMES, 1))
CHANGES = (("ship_size = 37", "ship_size = 1000"), ('"the rope"', '"a long rope"'), ("mast_size", "main_mast_size"))
EDITED = FILE
for old, new in CHANGES:
    EDITED = EDITED.replace(old, new)
WISH = "Write it again with a ship_size of 1000, the rope as 'a long rope', and mast_size named main_mast_size."
EDIT = f"Here is a file:\n\n{FILE}\n{WISH}"
FREE = "Tell me a story about a ship that is lost in the fog, and about the people who wait for her."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=Path, help="a file that gets the rows of the table, for speed.py")
    options = parser.parse_args()
    with_worker_environment()
    folder = builtin_folder()
    engine = MlxEngine(EngineOptions(cache_dir="", dequantize=True, prompt_cache_bytes=0))
    engine.load(folder, lambda *_: None)
    print(f"load average {os.getloadavg()[0]:.1f}")
    report = Report()
    for name, ask, least in (
        ("edit, greedy", lambda: edit(engine, Sampling(temperature=0)), 1.8),
        ("edit, seeded", lambda: edit(engine, Sampling(temperature=0.3, seed=3)), 1.8),
        ("free text, greedy", lambda: free(engine, Sampling(temperature=0)), 0.98),
        ("free text, seeded", lambda: free(engine, Sampling(temperature=1.0, seed=4)), 0.98),
    ):
        taken: dict[bool, list[float]] = {True: [], False: []}
        said: dict[bool, Any] = {}
        for index in range(options.rounds):
            for lookup in (True, False) if index % 2 else (False, True):
                engine._model.generator.lookup = PromptLookup() if lookup else None  # noqa: SLF001 - it is measured
                began_s = time.perf_counter()
                said[lookup] = ask()
                taken[lookup].append(time.perf_counter() - began_s)
        ratios = [without / with_ for without, with_ in zip(taken[False], taken[True], strict=True)]
        same = said[True] == said[False]
        ok = statistics.median(ratios) >= least and same
        seconds = " and ".join(f"{statistics.median(taken[lookup]):.2f}" for lookup in (False, True))
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        report.row(
            f"prompt lookup, {name}: {len(said[False])} tokens without and with",
            f">= {least} x, the same",
            f"{seconds} s: {statistics.median(ratios):.2f} x ({each}), {'the same' if same else 'OTHER TOKENS'}",
            ok=ok,
        )
    print(f"load average {os.getloadavg()[0]:.1f}")
    if options.rows:
        options.rows.write_text(json.dumps(report.rows), encoding="utf-8")
    return min(len(report.missed), 1)


class Dictation:
    """Allows one text only, in the place of a grammar: a small model does not make the changes by itself."""

    failure = ""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._place = 0
        self._served = False

    def advance(self, token: int) -> None:
        if self._served:
            self.follow(token)

    def follow(self, _token: int) -> None:
        self._served, self._place = False, self._place + 1

    def __call__(self, _tokens: mx.array, logits: mx.array) -> mx.array:
        self._served = True
        allowed = mx.arange(logits.shape[-1]) == self._tokens[self._place]
        return mx.where(allowed, logits, mx.array(-mx.inf, logits.dtype))


def edit(engine: MlxEngine, sampling: Sampling) -> list[int]:
    tokenizer = engine._model.loaded.tokenizer  # noqa: SLF001 - as above
    tokens = [*tokenizer.encode(EDITED), next(iter(tokenizer.eos_token_ids))]
    prompt: Any = engine.prepare(ChatRequest([{"role": "user", "content": EDIT}], sampling, max_tokens=len(tokens)))
    return run(engine, dataclasses.replace(prompt, constraint=Dictation(tokens)))


def free(engine: MlxEngine, sampling: Sampling) -> list[int]:
    return run(engine, engine.prepare(ChatRequest([{"role": "user", "content": FREE}], sampling, max_tokens=150)))


def run(engine: MlxEngine, prompt: Any) -> list[int]:
    engine.submit("only", prompt)
    tokens: list[int] = []
    while engine.busy():
        for event in engine.step():
            if isinstance(event, Step):
                tokens += [token for _, token in event.tokens]
    return tokens


if __name__ == "__main__":
    sys.exit(main())
