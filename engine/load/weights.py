"""Brings a model's weights into memory with progress, in the form that the device computes fast."""

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

from plimsoll.catalog.source import Progress
from plimsoll.engine.protocol import ModelInfo

_KNOWN = ("openblas", "mkl", "blis", "atlas")


class _DlInfo(ctypes.Structure):
    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def blas_in_use() -> str:
    """``openblas``, ``mkl``, the preloaded library's file name, ``accelerate`` on macOS, else ``reference``.

    MLX's Linux wheel brings the reference BLAS and takes another one only where it was preloaded. A look at the mapped
    files would be wrong: numpy maps an OpenBLAS of its own.
    """
    if sys.platform == "darwin":
        return "accelerate"
    process = ctypes.CDLL(None)
    try:
        routine = process.cblas_sgemm
    except AttributeError:
        return "reference"  # nothing is in scope before MLX's own
    info = _DlInfo()
    process.dladdr(ctypes.cast(routine, ctypes.c_void_p), ctypes.byref(info))
    name = Path(os.fsdecode(info.file or b"")).name
    return next((known for known in _KNOWN if known in name), name)


# Read at once: little beside a large model, and few enough pieces that other threads seldom have to be waited for.
_PIECE_BYTES = 64 * 1024**2
_LEAST_PIECES = 8


def on_the_cpu() -> bool:
    return bool(mx.default_device().type == mx.DeviceType.cpu)


def read_weights(model: nn.Module, path: Path, progress: Progress, *, dequantize: bool) -> None:
    """Evaluate what was loaded lazily, piece by piece, so that the peak stays near the final size.

    On a CPU floats become float32, and packed weights dense where ``dequantize`` says so.
    """
    total = sum(file.stat().st_size for file in path.glob("model*.safetensors"))
    modules = dict(tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module))
    on_cpu = on_the_cpu()
    done = evaluated = 0
    ready: list[nn.Module] = []
    progress("read", 0, total)
    for name in list(modules):
        module = modules.pop(name)
        done += sum(array.nbytes for _, array in tree_flatten(module.parameters()))
        if on_cpu:
            # On a CPU a 4-bit matmul with float16 scales is 40 times slower than with float32 ones, bfloat16 10 times.
            module.set_dtype(mx.float32)
            if dequantize and _is_quantized(module):
                module = _dense(module)
                model.update_modules(tree_unflatten([(name, module)]))
        ready.append(module)
        if done - evaluated >= min(_PIECE_BYTES, total // _LEAST_PIECES):
            mx.eval([one.parameters() for one in ready])
            ready.clear()
            evaluated = done
            progress("read", min(done, total), total)
    if on_cpu:
        model.set_dtype(mx.float32)  # arrays that belong to no leaf
    mx.eval(model.parameters())
    mx.clear_cache()
    progress("read", total, total)


def describe_model(model: nn.Module, *, context: int, vocab_size: int, load_s: float) -> ModelInfo:
    """What is said of a model that was read."""
    on_cpu = on_the_cpu()
    return ModelInfo(
        context=context,
        vocab_size=vocab_size,
        weights_bytes=sum(array.nbytes for _, array in tree_flatten(model.parameters())),
        device="cpu" if on_cpu else "gpu",
        dtype=_dtype(model),
        blas=blas_in_use() if on_cpu else "",
        load_s=load_s,
        working_set_bytes=0 if on_cpu else int(mx.device_info().get("max_recommended_working_set_size", 0)),
    )


def _is_quantized(module: nn.Module) -> bool:
    # mlx-lm's dequantize_model knows no global scale (NVFP4): such a module stays packed.
    return hasattr(module, "bits") and "scales" in module and "global_scale" not in module


def _dense(module: nn.Module) -> nn.Module:
    from mlx_lm.utils import dequantize_model  # noqa: PLC0415 - a small encoder is read without mlx-lm

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


def give_back() -> tuple[int, int]:
    """Collect garbage and empty the allocators' caches; bytes that MLX holds in arrays and in its cache afterwards."""
    gc.collect()
    mx.clear_cache()
    trim_malloc()
    return int(mx.get_active_memory()), int(mx.get_cache_memory())


def trim_malloc() -> None:
    """Give back what glibc keeps on its free lists: 570 of the 540 MB that MLX freed stayed resident without this."""
    if sys.platform == "linux" and (malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        malloc_trim(0)
