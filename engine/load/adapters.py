"""LoRA adapters as mlx-lm trains them: ``adapters.safetensors`` beside ``adapter_config.json``."""

from pathlib import Path

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import load_adapters

from plimsoll.errors import LoadFailed

_FILES = ("adapter_config.json", "adapters.safetensors")
_SHOWN_LINES = 3


def attach(model: nn.Module, folder: Path) -> None:
    """Put the adapter in ``folder`` over ``model``, whose weights are not read yet.

    Raises ``LoadFailed`` where files are missing or broken, or the adapter was trained for another model.
    """
    for name in _FILES:
        if not (folder / name).is_file():
            raise LoadFailed(
                f"The adapter {folder} has no {name}. It must be a folder that mlx-lm wrote (mlx_lm.lora); an adapter "
                "of PEFT has to be converted first."
            )
    try:
        load_adapters(model, str(folder))
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise LoadFailed(f"The adapter {folder} can't be used with this model: {_reason(error)}.") from None
    # Layers that were just made are in training mode, in which dropout is at work.
    model.eval()


def merge(model: nn.Module) -> None:
    """Add the adapter to float32 weights, where that loses nothing and saves two products per layer and token.

    Packed weights would lose precision a second time and 16-bit ones round the small difference away: those keep the
    adapter beside them.
    """
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "fuse")}
    for name in list(layers):
        layer = layers.pop(name)
        if not _is_float32(layer):
            continue
        merged = layer.fuse()
        mx.eval(merged.parameters())
        model.update_modules(tree_unflatten([(name, merged)]))
    mx.clear_cache()


def _reason(error: Exception) -> str:
    """In one line; of mlx-lm's list of tensors that do not fit the first few, without its heading."""
    if isinstance(error, KeyError):
        return f"its config has no {error}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    tensors = lines[1:] or lines
    more = f"; and {len(tensors) - _SHOWN_LINES} more" if len(tensors) > _SHOWN_LINES else ""
    return "; ".join(tensors[:_SHOWN_LINES]) + more


def _is_float32(layer: nn.Module) -> bool:
    base = next((layer[part] for part in ("linear", "embedding") if part in layer), None)
    if base is None or "scales" in base:
        return False
    return all(array.dtype == mx.float32 for _, array in tree_flatten(base.parameters()))
