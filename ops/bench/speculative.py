"""What speculative decoding brings with the built-in model: mlx-lm's own loop, and the price of checking a draft.

Run: python ops/bench/speculative.py. One sequence, greedy, float32. There is no smaller model of the same family to
draft with, so the drafts are the model itself (every draft is right: the most there is to win) and the model cut to its
first layers (cheaper, and wrong most of the time).
"""

import copy
import os
import sys
import time

import mlx.core as mx
from kv_quant import open_model
from mlx import nn
from mlx_lm.generate import generate_step, speculative_generate_step
from mlx_lm.models.cache import make_prompt_cache

from plimsoll.engine.blas import blas_in_use
from plimsoll.engine.environment import worker_environment

QUESTIONS = ("What is the capital of France?", "Write a short story about a ship.", "Count from 1 to 40.")
NEW_TOKENS = 48
CONTEXT = 256
WIDTHS = (1, 2, 3, 4, 5, 8)
REPEATS = 5


def main() -> None:
    model, tokenizer = open_model()
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
        for text in QUESTIONS
    ]
    print(f"BLAS {blas_in_use()}; {len(prompts)} answers of up to {NEW_TOKENS} tokens")
    plain = [alone(model, prompt, tokenizer.eos_token_ids) for prompt in prompts]
    speed = sum(len(out) for out, _ in plain) / sum(took for _, took in plain)
    print(f"no draft                     {speed:5.1f} tokens/s")
    for name, draft in (
        ("itself", model),
        ("its first 10 layers", cut(model, 10)),
        ("its first 2 layers", cut(model, 2)),
    ):
        for count in (2, 4):
            runs = [drafted(model, draft, prompt, count, tokenizer.eos_token_ids) for prompt in prompts]
            tokens = sum(len(out) for out, _, _ in runs)
            speed = tokens / sum(took for _, took, _ in runs)
            accepted = sum(right for _, _, right in runs) / tokens
            same = all(run[0] == base[0] for run, base in zip(runs, plain, strict=True))
            print(f"{name:20s} {count} ahead {speed:5.1f} tokens/s, {accepted:4.0%} drafted, same answers: {same}")
    prices(model)


def cut(model: nn.Module, layers: int) -> nn.Module:
    short = copy.copy(model)
    short.model = copy.copy(model.model)
    short.model.layers = model.model.layers[:layers]
    return short


def alone(model: nn.Module, prompt: list[int], ends: set[int]) -> tuple[list[int], float]:
    start, out = time.monotonic(), []
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=NEW_TOKENS):
        if int(token) in ends:
            break
        out.append(int(token))
    return out, time.monotonic() - start


def drafted(
    model: nn.Module, draft: nn.Module, prompt: list[int], count: int, ends: set[int]
) -> tuple[list[int], float, int]:
    """Tokens, seconds, and how many of the tokens came from the draft."""
    start, out, right = time.monotonic(), [], 0
    steps = speculative_generate_step(mx.array(prompt), model, draft, num_draft_tokens=count, max_tokens=NEW_TOKENS)
    for token, _, from_draft in steps:
        if int(token) in ends:
            break
        out.append(int(token))
        right += bool(from_draft)
    return out, time.monotonic() - start, right


def prices(model: nn.Module) -> None:
    """What one step costs by how many tokens it reads, and what the same work gives as a batch of answers."""
    print("tokens read in one step: seconds, times the price of one")
    first = 0.0
    for width in WIDTHS:
        cache = make_prompt_cache(model)
        mx.eval(model(mx.zeros((1, CONTEXT), dtype=mx.int32), cache=cache))
        took = []
        for _ in range(REPEATS):
            start = time.monotonic()
            mx.eval(model(mx.zeros((1, width), dtype=mx.int32), cache=cache))
            took.append(time.monotonic() - start)
        first = first or min(took)
        print(f"{width:3d}  {min(took):.3f}  {min(took) / first:.2f}")


if __name__ == "__main__":
    wanted = worker_environment("auto")
    if not set(wanted) <= set(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})
    main()
