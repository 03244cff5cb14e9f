"""What a quantised KV cache costs and saves: decode, reading on, bytes per token, and whether answers stay the same.

Run: python ops/bench/kv_quant.py. One sequence of the built-in model, greedy, float32; the prompt is read once, then
its cache is quantised as mlx-lm's generate_step does it.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import dequantize_model, load_model, load_tokenizer

from plimsoll import config
from plimsoll.catalog import BUILTIN, default_cache_dir, resolve
from plimsoll.engine.blas import blas_in_use
from plimsoll.engine.environment import worker_environment

CONTEXTS = (1024, 4096)
NEW_TOKENS = 24
MORE_TOKENS = 64
CHUNK = 256
GROUP_SIZE = 64
DOCS = Path(__file__).parents[2] / "docs"


def main() -> None:
    model, tokenizer = open_model()
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md")))
    tokens = tokenizer.encode(text * 2)
    print(f"BLAS {blas_in_use()}", flush=True)
    for context in CONTEXTS:
        cache = make_prompt_cache(model)
        start = time.monotonic()
        for at in range(0, context - 1, CHUNK):
            mx.eval(model(mx.array([tokens[at : min(at + CHUNK, context - 1)]]), cache=cache))
        print(f"{context} tokens read at {context / (time.monotonic() - start):.0f} tokens/s", flush=True)
        answers = {}
        for bits in (4, 8, None):  # the float32 cache itself last, for it grows
            layers = [layer.to_quantized(GROUP_SIZE, bits) if bits else layer for layer in cache]
            mx.eval([flat(layer.state) for layer in layers])
            decode_s, answers[bits] = decode(model, tokens[context - 1], layers)
            start = time.monotonic()
            mx.eval(model(mx.array([tokens[:MORE_TOKENS]]), cache=layers))
            read_s = time.monotonic() - start
            per_token = sum(array.nbytes // array.shape[2] for layer in layers for array in flat(layer.state))
            print(
                f"{bits or 32:3d} bits: {NEW_TOKENS / decode_s:5.1f} tokens/s decoded, {MORE_TOKENS / read_s:4.0f} "
                f"tokens/s read on, {per_token} bytes per token",
                flush=True,
            )
        for bits in (8, 4):
            pairs = zip(answers[None], answers[bits], strict=True)
            same = next((i for i, (one, other) in enumerate(pairs) if one != other), NEW_TOKENS)
            print(f"{bits:3d} bits: the first {same} of {NEW_TOKENS} tokens are those of 32 bits", flush=True)


def open_model() -> tuple[nn.Module, Any]:
    """The built-in model as a worker on a CPU has it."""
    mx.disable_compile()
    folder = resolve(BUILTIN, cache_dir=default_cache_dir(config.load()), offline=False, progress=lambda *_: None)
    model, settings = load_model(folder, lazy=True)
    model = dequantize_model(model)
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    return model, load_tokenizer(folder, eos_token_ids=settings.get("eos_token_id"))


def decode(model: nn.Module, last: int, layers: list[Any]) -> tuple[float, list[int]]:
    """Seconds and tokens."""
    start = time.monotonic()
    steps = generate_step(mx.array([last]), model, max_tokens=NEW_TOKENS, prompt_cache=layers)
    out = [int(token) for token, _ in steps]
    return time.monotonic() - start, out


def flat(state: Any) -> list[mx.array]:
    if isinstance(state, tuple | list):
        return [array for part in state for array in flat(part)]
    return [state] if isinstance(state, mx.array) else []


if __name__ == "__main__":
    wanted = worker_environment("auto")
    if not set(wanted) <= set(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})
    main()
