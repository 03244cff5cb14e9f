"""What a model on disk will take in memory, read from its headers alone."""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from plimsoll.catalog.files import local_folder, problem
from plimsoll.engine.fake_engine import parse
from plimsoll.engine.protocol import ModelSource
from plimsoll.memory.needs import Weight

_MAX_HEADER_BYTES = 100 * 1024 * 1024
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2}
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_DEFAULT_GROUP_SIZE = 64
_ENCODERS = frozenset({"bert"})  # they read a text whole and keep nothing of it


class _Tensor(msgspec.Struct, frozen=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def weigh_source(source: ModelSource, cache_dir: Path) -> Weight | None:
    """Weigh a model where its files are whole and converted, else None. Raises as ``weigh`` does."""
    if source.kind == "fake":
        hold = parse(source.location).hold
        return Weight(max(hold, 1), max(hold, 1), max(hold, 1), 0, None)
    folder = local_folder(source, cache_dir)
    if folder is None or problem(folder) is not None:
        if source.kind == "folder":
            raise ValueError(f"{folder} {problem(folder) if folder else 'is not a folder'}")
        return None
    return weigh(folder, Path(source.adapter) if source.adapter else None)


def weigh(folder: Path, adapter: Path | None = None) -> Weight:
    """Weigh the MLX model in ``folder``, and the adapter that goes over it.

    Raises ``OSError`` or ``ValueError`` for files that can't be read.
    """
    config = msgspec.json.decode((folder / "config.json").read_bytes(), type=dict[str, Any])
    tensors: dict[str, _Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors.update(_header(file))
    quantization = config.get("quantization") or config.get("quantization_config") or {}
    stored = float32 = dense = 0
    for name, tensor in tensors.items():
        size = math.prod(tensor.shape)
        nbytes = tensor.data_offsets[1] - tensor.data_offsets[0]
        stored += nbytes
        is_float = tensor.dtype in _FLOATS
        float32 += 4 * size if is_float else nbytes
        module, _, part = name.rpartition(".")
        scales = tensors.get(f"{module}.scales")
        if scales is None:
            dense += 4 * size if is_float else nbytes
        elif part == "weight":
            dense += 4 * math.prod(scales.shape) * _group_size(quantization, module)
    if adapter is not None:
        file = adapter / "adapters.safetensors"
        if not file.is_file():
            raise ValueError(f"the adapter {adapter} has no {file.name}")
        added = dict(_header(file)).values()
        values = sum(math.prod(tensor.shape) for tensor in added)
        stored += sum(tensor.data_offsets[1] - tensor.data_offsets[0] for tensor in added)
        # On a CPU it may be added to the weights and be gone; until then it is there.
        float32, dense = float32 + 4 * values, dense + 4 * values
    return Weight(stored, float32, dense, _kv_values(config), _context(config))


def _header(file: Path) -> Iterator[tuple[str, _Tensor]]:
    """The safetensors header: a little-endian u64 length, then JSON (https://github.com/huggingface/safetensors)."""
    with file.open("rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 0 < length <= _MAX_HEADER_BYTES:
            raise ValueError(f"{file.name} is not a safetensors file")
        try:
            entries = msgspec.json.decode(stream.read(length), type=dict[str, msgspec.Raw])
            for name, raw in entries.items():
                if name != "__metadata__":
                    yield name, msgspec.json.decode(raw, type=_Tensor)
        except msgspec.MsgspecError as error:
            raise ValueError(f"{file.name} has a broken safetensors header: {error}") from None


def _group_size(quantization: dict[str, Any], module: str) -> int:
    of_module = quantization.get(module)
    chosen = of_module if isinstance(of_module, dict) else quantization
    size = chosen.get("group_size", _DEFAULT_GROUP_SIZE)
    return size if isinstance(size, int) else _DEFAULT_GROUP_SIZE


def _text(config: dict[str, Any]) -> dict[str, Any]:
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config


def _number(config: dict[str, Any], *keys: str) -> int:
    values = (config.get(key) for key in keys)
    return next((value for value in values if isinstance(value, int) and value > 0), 0)


def _kv_values(config: dict[str, Any]) -> int:
    """Keys and values of all layers; windows and shared layers are not subtracted, so it is an upper bound."""
    text = _text(config)
    if text.get("model_type") in _ENCODERS:
        return 0
    layers = _number(text, "num_hidden_layers", "n_layer", "num_layers")
    if rank := _number(text, "kv_lora_rank"):  # multi-head latent attention keeps one compressed vector per layer
        return layers * (rank + _number(text, "qk_rope_head_dim"))
    heads = _number(text, "num_attention_heads", "n_head")
    head_dim = _number(text, "head_dim") or (_number(text, "hidden_size", "n_embd") // heads if heads else 0)
    return 2 * layers * (_number(text, "num_key_value_heads") or heads) * head_dim


def _context(config: dict[str, Any]) -> int | None:
    return _number(_text(config), "max_position_embeddings", "n_positions", "max_seq_len") or None
