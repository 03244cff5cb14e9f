"""The raw BatchGenerator loop of mlx-lm: the most that a server around it can reach. A child process of speed.py.

Reads one JSON object per line, {"prompts": [messages, ...], "max_tokens"}, and prints one: the tokens' times in seconds
since the prompts went in.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator
from mlx_lm.utils import load_model, load_tokenizer


def main(folder: Path) -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    mx.disable_compile()  # as the server does on a CPU
    model, config = load_model(folder)
    tokenizer = load_tokenizer(folder, eos_token_ids=config.get("eos_token_id"))
    out.write("ready\n")
    for line in sys.stdin:
        order = json.loads(line)
        prompts = [tokenizer.apply_chat_template(one, add_generation_prompt=True) for one in order["prompts"]]
        out.write(json.dumps(run(model, tokenizer, prompts, order["max_tokens"])) + "\n")


def run(model: Any, tokenizer: Any, prompts: list[list[int]], max_tokens: int) -> dict[str, Any]:
    """All prompts at once, greedily; nothing is done with a token but to note its time."""
    stop = [(token,) for token in tokenizer.eos_token_ids]
    generator = BatchGenerator(model, stop_tokens=stop, completion_batch_size=max(32, len(prompts)))
    began = time.perf_counter()
    times: dict[int, list[float]] = {uid: [] for uid in generator.insert(prompts, [max_tokens] * len(prompts))}
    left = set(times)
    while left:
        _, responses = generator.next()
        now = time.perf_counter() - began
        for response in responses:
            times[response.uid].append(now)
            if response.finish_reason:
                left.discard(response.uid)
    return {"times": list(times.values()), "ended": time.perf_counter() - began}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
