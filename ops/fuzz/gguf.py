"""Broken GGUF files through everything of the conversion but the weights: a folder, or ``GgufError``."""

import functools
import importlib.util
from pathlib import Path
from typing import Any

import harness
from mutate import Mutator

from plimsoll.catalog.gguf.config import build_config, llama3_scaling, name_tensors
from plimsoll.catalog.gguf.reader import GgufError, read_header
from plimsoll.catalog.gguf.tokenizer import Vocabulary, write_tokenizer

_FACTORS = (0.0, 1.0, 8.0, 8.0, -1.0, 1e308, float("nan"), float("inf"))
_WRITER = Path(__file__).parents[2] / "tests" / "engine" / "gguf_files.py"


@functools.cache
def _writer() -> Any:
    spec = importlib.util.spec_from_file_location("gguf_files", _WRITER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def _models() -> list[tuple[dict[str, Any], dict[str, Any], bytes]]:
    """Metadata, tensors and bytes of small models with either tokenizer; few tokens, for speed."""
    gguf, models = _writer(), []
    for whole in (gguf.bpe(), gguf.bpe("llama-bpe"), gguf.spm()):
        tokens = whole["tokenizer.ggml.tokens"]
        few = [*range(24), *range(len(tokens) - 8, len(tokens))]
        short = {
            key: [value[at] for at in few] if isinstance(value, list) and len(value) == len(tokens) else value
            for key, value in whole.items()
        }
        if "tokenizer.ggml.merges" in short:
            short["tokenizer.ggml.merges"] = [f"{tokens[3]} {tokens[4]}"]
            short["tokenizer.ggml.tokens"][-1] = tokens[3] + tokens[4]
        metadata = gguf.llama_metadata(short) | {"general.alignment": 32, "llama.rope.scaling.type": "none"}
        tensors = gguf.llama_tensors("Q4_0", len(few))
        models.append((metadata, tensors, gguf.content(metadata, tensors)))
    return models


def case(mutator: Mutator) -> str:
    """One broken file, read and converted."""
    rnd, folder = mutator.random, harness.scratch()
    metadata, tensors, content = rnd.choice(_models())
    head = len(content) - sum(len(raw) for _, _, raw in tensors.values())
    data = _rebuilt(mutator, metadata, tensors) if rnd.random() < 0.4 else None
    data = data or mutator.bytes(content, within=rnd.choice((32, head, head, head, None)))
    (folder / "model.gguf").write_bytes(data)
    try:
        header = read_header(folder / "model.gguf")
        vocabulary = Vocabulary(header)
        config = build_config(header, vocabulary)
        name_tensors(header, config)
        write_tokenizer(header, vocabulary, folder)
        if rnd.random() < 0.2:
            llama3_scaling([rnd.choice(_FACTORS) for _ in range(rnd.choice((0, 1, 8)))], config)
    except GgufError as error:
        return harness.refused(str(error))
    return "converted"


def _rebuilt(mutator: Mutator, metadata: dict[str, Any], tensors: dict[str, Any]) -> bytes | None:
    """A file with the same form and other contents; None where the writer has no form for them."""
    try:
        return _writer().content(dict(mutator.structure(metadata)), tensors)
    except Exception:  # noqa: BLE001 - the writer is made for good files
        return None


if __name__ == "__main__":
    harness.main("gguf", case)
