"""How often a converted GGUF file has the same likeliest next token as llama.cpp has with the file itself.

    python ops/bench/gguf_agreement.py model.gguf [TEXT FILE]

Needs llama-cpp-python beside Plimsoll, which no test does. The converted folder is removed afterwards. Target: 99 %.
"""

import argparse
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
from llama_cpp import Llama
from mlx_lm.utils import load_model

from plimsoll.catalog.gguf.convert import convert

TOKENS = 512
TEXT = Path(__file__).parent.parent.parent / "docs" / "design.md"


def main() -> None:
    """Print the share of positions with one likeliest token, and how far apart the perplexities are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("text", type=Path, nargs="?", default=TEXT)
    given = parser.parse_args()
    llama = Llama(str(given.file), n_ctx=TOKENS, logits_all=True, verbose=False)
    ids = llama.tokenize(given.text.read_bytes())[:TOKENS]
    llama.eval(ids)
    theirs = np.array(llama.scores[: len(ids)], np.float32)
    with tempfile.TemporaryDirectory() as folder:
        convert(given.file, Path(folder) / "model")
        model, _ = load_model(Path(folder) / "model")
        model.set_dtype(mx.float32)
        ours = np.array(model(mx.array([ids]))[0].astype(mx.float32))
    same = (theirs.argmax(-1) == ours.argmax(-1)).mean()
    perplexities = [_perplexity(scores, ids) for scores in (theirs, ours)]
    print(f"{len(ids)} tokens: {100 * same:.2f} % have the same likeliest next token")
    print(f"perplexity: llama.cpp {perplexities[0]:.3f}, converted {perplexities[1]:.3f}")


def _perplexity(scores: np.ndarray, ids: list[int]) -> float:
    shifted = scores[:-1].astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    log_shares = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return float(np.exp(-log_shares[np.arange(len(ids) - 1), ids[1:]].mean()))


if __name__ == "__main__":
    main()
