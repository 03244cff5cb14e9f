"""What a model on disk will take in memory, read from its headers alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from plimsoll.catalog.fake_source import parse
from plimsoll.catalog.files import MOST_TENSORS, Tensor, local_folder, problem, read_object, read_tensors
from plimsoll.catalog.group_hosts import in_no_layer, refuse_split, share_of
from plimsoll.catalog.model_card import makes_embeddings, scores_documents
from plimsoll.catalog.source import Group, ModelSource
from plimsoll.memory.load_options import Weight

_DEFAULT_GROUP_SIZE = 64
_LARGEST_GROUP_SIZE = 1 << 16
_MOST_KV_VALUES = 1 << 32  # of one token; the largest published model keeps 2 million
_MOST_CONTEXT = 1 << 31
_ENCODERS = frozenset({"bert"})  # they read a text whole and keep nothing of it


def weigh_source(source: ModelSource, cache_dir: Path, group: Group | None = None) -> Weight | None:
    """Weigh a model where its files are whole and converted, else None. Raises as ``weigh`` does.

    Of one that a ``group`` serves, the share of one rank.
    """
    if source.kind == "fake":
        hold = parse(source.location).hold
        return Weight(max(hold, 1), max(hold, 1), max(hold, 1), 0, None)
    folder = local_folder(source, cache_dir)
    if folder is None or problem(folder) is not None:
        if source.kind == "folder":
            raise ValueError(f"{folder} {problem(folder) if folder else 'is not a folder'}")
        return None
    return weigh(folder, Path(source.adapter) if source.adapter else None, group)


def weigh(folder: Path, adapter: Path | None = None, group: Group | None = None) -> Weight:
    """Weigh the MLX model in ``folder``, and the adapter that goes over it; or one rank's share of it.

    Raises ``OSError`` or ``ValueError`` for files that can't be read.
    """
    config = read_object(folder / "config.json")
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors |= read_tensors(file)
        if len(tensors) > MOST_TENSORS:
            raise ValueError(f"{folder} announces more than {MOST_TENSORS} tensors")
    weight = weigh_tensors(config, tensors, _adapter_tensors(adapter) if adapter else {})
    if group is None:
        return msgspec.structs.replace(weight, no_chats=makes_embeddings(folder) or scores_documents(folder))
    text = text_part(config)
    refuse_split(text, group)
    outside = Weight(*_sizes(config, in_no_layer(tensors)), 0, None)
    return share_of(weight, outside, _layers(text), group)


def weigh_tensors(config: dict[str, Any], tensors: Mapping[str, Tensor], adapter: Mapping[str, Tensor]) -> Weight:
    """Weigh a model by its ``config.json`` and the headers of its files and of its adapter's. Raises ``ValueError``."""
    stored, float32, dense = _sizes(config, tensors)
    for tensor in adapter.values():
        stored += tensor.nbytes
        # On a CPU an adapter may be merged into the weights; until then it takes memory of its own.
        float32, dense = float32 + 4 * tensor.values, dense + 4 * tensor.values
    return Weight(stored, float32, dense, _kv_values(config, len(tensors)), _context(config))


def _sizes(config: dict[str, Any], tensors: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """As in the files, with floats as float32, and all as dense float32."""
    quantization = _by_plain_name(config.get("quantization") or config.get("quantization_config"))
    stored = float32 = dense = 0
    for name, tensor in tensors.items():
        stored += tensor.nbytes
        as_float32 = 4 * tensor.values if tensor.is_float else tensor.nbytes
        float32 += as_float32
        module, _, part = name.rpartition(".")
        scales = tensors.get(f"{module}.scales")
        if scales is None:
            dense += as_float32
        elif part == "weight":
            dense += 4 * scales.values * _group_size(quantization, module)
    return stored, float32, dense


def _adapter_tensors(adapter: Path) -> dict[str, Tensor]:
    file = adapter / "adapters.safetensors"
    if not file.is_file():
        raise ValueError(f"the adapter {adapter} has no {file.name}")
    return read_tensors(file)


def _by_plain_name(quantization: Any) -> dict[str, Any]:
    """The settings of a model's quantisation and of its modules, these by their plain names."""
    return {_plain_name(key): value for key, value in quantization.items()} if isinstance(quantization, dict) else {}


def _plain_name(module: str) -> str:
    """The name without the parts that say where the language model stands: settings and files differ in these."""
    parts = module.split(".")
    while len(parts) > 1 and parts[0] in ("model", "language_model"):
        parts = parts[1:]
    return ".".join(parts)


def _group_size(quantization: dict[str, Any], module: str) -> int:
    of_module = quantization.get(_plain_name(module))
    size = (of_module if isinstance(of_module, dict) else quantization).get("group_size", _DEFAULT_GROUP_SIZE)
    if not isinstance(size, int):
        return _DEFAULT_GROUP_SIZE
    if not 0 < size <= _LARGEST_GROUP_SIZE:
        raise ValueError(f"config.json has a quantization in groups of {size}, expected 1 to {_LARGEST_GROUP_SIZE}")
    return size


def text_part(config: dict[str, Any]) -> dict[str, Any]:
    """What a config says of the language model, also where it is one of several parts."""
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config


def _number(config: dict[str, Any], *keys: str) -> int:
    values = (config.get(key) for key in keys)
    return next((value for value in values if isinstance(value, int) and value > 0), 0)


def _layers(text: dict[str, Any]) -> int:
    return _number(text, "num_hidden_layers", "n_layer", "num_layers")


def _kv_values(config: dict[str, Any], tensors: int) -> int:
    """Keys and values of all layers; windows and shared layers are not subtracted, so it is an upper bound."""
    values = _announced_kv_values(config, tensors)
    if values > _MOST_KV_VALUES:
        raise ValueError("config.json asks for more KV cache for each token than any model has: look at its sizes")
    return values


def _announced_kv_values(config: dict[str, Any], tensors: int) -> int:
    text = text_part(config)
    layers = _layers(text)
    if layers > tensors:  # a loader would make them all before it saw that
        raise ValueError(f"config.json has {layers} layers and the files hold {tensors} tensors")
    if str(text.get("model_type")) in _ENCODERS:
        return 0
    if rank := _number(text, "kv_lora_rank"):  # multi-head latent attention keeps one compressed vector per layer
        return layers * (rank + _number(text, "qk_rope_head_dim"))
    heads = _number(text, "num_attention_heads", "n_head")
    head_dim = _number(text, "head_dim") or (_number(text, "hidden_size", "n_embd") // heads if heads else 0)
    return 2 * layers * (_number(text, "num_key_value_heads") or heads) * head_dim


def _context(config: dict[str, Any]) -> int | None:
    context = _number(text_part(config), "max_position_embeddings", "n_positions", "max_seq_len")
    return min(context, _MOST_CONTEXT) or None
