"""Reads a model's files: weights with progress, in the form that the device computes fast."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import dequantize_model, load_model, load_tokenizer

from plimsoll.engine.blas import blas_in_use
from plimsoll.engine.engine import Progress
from plimsoll.engine.protocol import EngineOptions, ModelInfo
from plimsoll.errors import LoadFailed

_FALLBACK_CONTEXT = 4096
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


@dataclass(frozen=True, slots=True)
class Loaded:
    model: nn.Module
    tokenizer: TokenizerWrapper
    info: ModelInfo


def load(path: Path, options: EngineOptions, progress: Progress) -> Loaded:
    """Read the folder ``path`` on the calling thread, which owns every array from then on.

    On a CPU packed weights become dense float32 where ``options.dequantize`` says so, or get float32 scales; a GPU
    takes them as they are.

    Raises ``LoadFailed`` where files are missing or the model can't be batched, and what MLX raises on bad files.
    """
    start = time.monotonic()
    _check_files(path)
    on_cpu = on_the_cpu()
    if on_cpu:
        # There mx.compile runs a C++ compiler per kernel; measured as fast without, and many machines have none.
        mx.disable_compile()
    model, config = load_model(path, lazy=True, trust_remote_code=False)
    _check_batching(model, config)
    tokenizer = _load_tokenizer(path, config)
    _read_weights(model, path, options, progress, on_cpu=on_cpu)
    info = ModelInfo(
        context=_context(config, options.context),
        vocab_size=int(_setting(config, ("vocab_size",)) or len(tokenizer)),
        weights_bytes=sum(array.nbytes for _, array in tree_flatten(model.parameters())),
        device="cpu" if on_cpu else "gpu",
        dtype=_dtype(model),
        blas=blas_in_use() if on_cpu else "",
        load_s=time.monotonic() - start,
        working_set_bytes=0 if on_cpu else int(mx.device_info().get("max_recommended_working_set_size", 0)),
    )
    return Loaded(model, tokenizer, info)


def on_the_cpu() -> bool:
    return bool(mx.default_device().type == mx.DeviceType.cpu)


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


def _load_tokenizer(path: Path, config: dict[str, Any]) -> TokenizerWrapper:
    # Said outright: where it is left open, transformers asks on the terminal.
    tokenizer = load_tokenizer(path, {"trust_remote_code": False}, eos_token_ids=config.get("eos_token_id"))
    # Were one set, every encode would change the shared Rust object for a moment, and a decode on the step thread in
    # that moment raises "Already borrowed".
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        backend.no_truncation()
        backend.no_padding()
    return tokenizer


def _read_weights(model: nn.Module, path: Path, options: EngineOptions, progress: Progress, *, on_cpu: bool) -> None:
    """Module by module, so that the peak stays near the final size."""
    total = sum(file.stat().st_size for file in path.glob("model*.safetensors"))
    modules = dict(tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module))
    dense = on_cpu and options.dequantize
    done = reported = 0
    progress("read", 0, total)
    for name in list(modules):
        module = modules.pop(name)
        done += sum(array.nbytes for _, array in tree_flatten(module.parameters()))
        if on_cpu:
            # On a CPU a 4-bit matmul with float16 scales is 40 times slower than with float32 ones, bfloat16 10 times.
            module.set_dtype(mx.float32)
            if dense and _is_quantized(module):
                module = _dense(module)
                model.update_modules(tree_unflatten([(name, module)]))
        mx.eval(module.parameters())
        if min(done, total) - reported >= total // 100:
            reported = min(done, total)
            progress("read", reported, total)
    if on_cpu:
        model.set_dtype(mx.float32)  # arrays that belong to no leaf
    mx.eval(model.parameters())
    mx.clear_cache()
    progress("read", total, total)


def _is_quantized(module: nn.Module) -> bool:
    # mlx-lm's dequantize_model knows no global scale (NVFP4): such a module stays packed.
    return hasattr(module, "bits") and "scales" in module and "global_scale" not in module


def _dense(module: nn.Module) -> nn.Module:
    holder = nn.Module()
    holder.module = module
    dense = dequantize_model(holder).module
    dense.set_dtype(mx.float32)
    return dense


def _dtype(model: nn.Module) -> str:
    """Such as float32, or "4-bit, float16" for packed weights with float16 scales."""
    sizes: dict[str, int] = {}
    for _, array in tree_flatten(model.parameters()):
        if mx.issubdtype(array.dtype, mx.floating):
            name = str(array.dtype).removeprefix("mlx.core.")
            sizes[name] = sizes.get(name, 0) + array.nbytes
    compute = max(sizes, key=lambda name: sizes[name], default="unknown")
    bits = sorted(set(_bits(model)))
    return ", ".join([f"{'/'.join(map(str, bits))}-bit", compute]) if bits else compute


def _bits(model: nn.Module) -> Iterator[int]:
    for _, module in model.named_modules():
        if "scales" in module and hasattr(module, "bits"):
            yield int(module.bits)


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
