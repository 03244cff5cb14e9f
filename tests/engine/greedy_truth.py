"""Greedy answers of the engine beside those of mlx_lm.stream_generate: ``greedy_truth.py FOLDER`` prints JSON.

A script, for the fast BLAS can only be preloaded into a new process.
"""

import json
import sys
import time
from pathlib import Path

import mlx.core as mx
from mlx_helpers import Run, open_engine, request
from mlx_lm import stream_generate
from mlx_lm.utils import dequantize_model, load_model, load_tokenizer

MAX_TOKENS = 10
# Each differs from the others in what its tokens are made of, or in how long it is. Twice as many as are generated at
# once: the later ones join a batch that is under way.
PROMPTS = [
    "What is the capital of France?",
    "def fibonacci(n):",
    "What is 12 + 30?",
    "Что такое море?",
    "Write one sentence with the emoji 🚢.",
    "Summarise: The ship left the harbour at dawn and came back at dusk with a hold full of fish.",
    "Who wrote Hamlet?",
    "Complete the proverb: A rolling stone",
]
MAX_BATCH = 4


def main(folder: Path) -> None:
    model, config = load_model(folder, lazy=True)
    model.set_dtype(mx.float32)
    dequantize_model(model)
    mx.eval(model.parameters())
    tokenizer = load_tokenizer(folder, eos_token_ids=config.get("eos_token_id"))
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
        for text in PROMPTS
    ]
    # The model's own template: what mlx-lm makes of it must be what the engine reads.
    engine = open_engine(folder, dequantize=True, prompt_cache_bytes=0, max_batch=MAX_BATCH)
    assert [engine.prepare(request(text)).tokens for text in PROMPTS] == prompts
    start = time.monotonic()
    expected = [reference(model, tokenizer, prompt) for prompt in prompts]
    marks = [time.monotonic() - start]
    alone = [generate(engine, [text])[0] for text in PROMPTS]
    marks.append(time.monotonic() - start - sum(marks))
    together = generate(engine, PROMPTS)
    marks.append(time.monotonic() - start - sum(marks))
    different = [
        {"prompt": text, "how": how, "expected": right, "got": got, "gap": gap(model, prompt, right, got)}
        for how, answers in (("alone", alone), ("together", together))
        for text, prompt, right, got in zip(PROMPTS, prompts, expected, answers, strict=True)
        if got != right
    ]
    tokens = sum(map(len, expected))
    names = ("stream_generate", "alone", f"{MAX_BATCH} at once")
    speed = {name: round(tokens / took, 1) for name, took in zip(names, marks, strict=True)}
    result = {"blas": engine.info.blas, "tokens": tokens, "tokens_per_s": speed, "different": different}
    sys.stdout.write(json.dumps(result))


def reference(model, tokenizer, prompt):
    """Token ids, without the end-of-text token."""
    out = stream_generate(model, tokenizer, prompt, max_tokens=MAX_TOKENS)
    return [response.token for response in out if response.finish_reason != "stop"]


def generate(engine, texts):
    run = Run(engine)
    for text in texts:
        run.submit(text, request(text, max_tokens=MAX_TOKENS))
    run.finish()
    return [run.tokens.get(text, []) for text in texts]


def gap(model, prompt, right, got):
    """By how much the likeliest token beat the second where two answers first differ, in logits."""
    same = next(
        (i for i, pair in enumerate(zip(right, got, strict=False)) if pair[0] != pair[1]), min(len(right), len(got))
    )
    logits = model(mx.array([prompt + right[:same]]))[0, -1]
    first, second = sorted(mx.topk(logits, 2).tolist(), reverse=True)
    return first - second


if __name__ == "__main__":
    main(Path(sys.argv[1]))
