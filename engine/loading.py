"""Loads a model that mlx-lm knows, with its tokenizer and its adapter."""

import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx import nn
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_model

from plimsoll.engine import adapters
from plimsoll.engine.cpu_math import make_cpu_fast
from plimsoll.engine.engine import Progress
from plimsoll.engine.own_code import refuse_code
from plimsoll.engine.protocol import EngineOptions, ModelInfo
from plimsoll.engine.tokenizers import TokenizerReader
from plimsoll.engine.weights import describe_model, on_the_cpu, read_weights
from plimsoll.errors import LoadFailed

if TYPE_CHECKING:
    from plimsoll.engine.rank import Rank

_FALLBACK_CONTEXT = 4096
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model whose weights are read; ``tokenizer`` waits for its own, and raises what was wrong with it."""

    model: nn.Module
    info: ModelInfo
    reading: Future[TokenizerWrapper]

    @property
    def tokenizer(self) -> TokenizerWrapper:
        return self.reading.result()


def load(
    path: Path,
    options: EngineOptions,
    progress: Progress,
    tokenizers: TokenizerReader | None = None,
    rank: "Rank | None" = None,
) -> Loaded:
    """Read the folder ``path`` on the calling thread, which owns every array from then on.

    ``tokenizers`` may have read its tokenizer before.

    On a CPU packed weights become dense float32 where ``options.dequantize`` says so, or get float32 scales; a GPU
    takes them as they are. A ``rank`` of a group reads its share only, and waits for the others.

    Raises ``LoadFailed`` where files are missing or want code of the model's own, the adapter does not belong to the
    model or it can't be batched, and what MLX raises on bad files.
    """
    start = time.monotonic()
    _check_files(path)
    refuse_code(path)
    if on_the_cpu():
        make_cpu_fast()
    tokenizer = (tokenizers or TokenizerReader()).read(path)
    model, config = load_model(path, lazy=True, trust_remote_code=False)
    together = rank.split(model, dequantize=options.dequantize) if rank else model
    _check_batching(model, config)
    if options.adapter:
        adapters.attach(model, Path(options.adapter))
    read_weights(model, path, progress, dequantize=options.dequantize)
    if options.adapter:
        adapters.merge(model)
    vocab_size = int(_setting(config, ("vocab_size",)) or len(tokenizer.result()))
    context = _context(config, options.context)
    info = describe_model(model, context=context, vocab_size=vocab_size, load_s=time.monotonic() - start)
    return Loaded(together, info, tokenizer)


def _check_files(path: Path) -> None:
    for what, pattern in (("config.json", "config.json"), ("weights", "model*.safetensors"), ("tokenizer", "*token*")):
        if not any(path.glob(pattern)):
            raise LoadFailed(
                f"{path} has no {what} ({pattern}). A model's folder needs config.json, model*.safetensors and the "
                "tokenizer's files; fetch or convert the model again."
            )


def _check_batching(model: nn.Module, config: dict[str, Any]) -> None:
    kinds = {type(layer).__name__ for layer in make_prompt_cache(model) if not hasattr(layer, "merge")}
    if kinds:
        raise LoadFailed(
            f"A model of type {config.get('model_type')} keeps a {', '.join(sorted(kinds))}, which mlx-lm can't batch "
            "yet. Use another model."
        )


def _context(config: dict[str, Any], wanted: int | None) -> int:
    most = int(_setting(config, _CONTEXT_KEYS) or _FALLBACK_CONTEXT)
    return most if wanted is None else min(wanted, most)


def _setting(config: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """The first of ``keys`` in the config, or in the text part of a multi-modal one."""
    for part in (config, config.get("text_config") or {}):
        for key in keys:
            if part.get(key):
                return part[key]
    return None
