"""Convert a GGUF file to a folder that mlx-lm loads.

Run as ``python -m plimsoll.catalog.gguf.convert SRC DEST``.

Weights are copied in pieces of a few megabytes, so memory stays small whatever the model's size. Q4_0, Q4_1 and Q8_0
blocks become MLX's affine quantization with groups of 32, which holds the same numbers: ``scale * q + bias`` where
Q4_0's bias is ``-8 * scale`` and Q8_0's ``-128 * scale``. ``requantize.py`` does the types that lose something; how
much is written beside the weights.
"""

import functools
import json
import os
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plimsoll.catalog.gguf.config import ROPE_TENSORS, build_config, family_of, llama3_scaling, name_tensors
from plimsoll.catalog.gguf.reader import GgufError, Header, Tensor, read_header
from plimsoll.catalog.gguf.requantize import BITS as REQUANTIZED
from plimsoll.catalog.gguf.requantize import Loss, requantize
from plimsoll.catalog.gguf.tokenizer import Vocabulary, write_tokenizer
from plimsoll.catalog.source import CONVERSION

_PIECE_BYTES = 8 << 20
_GROUP = 32
_BITS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8} | REQUANTIZED
_PLAIN: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_SAFETENSORS_NAMES = {"<f4": "F32", "<f2": "F16", "<u2": "BF16", "<u4": "U32"}
# In float32 a piece that is dequantised takes up to 16 times its bytes, several times over.
_REQUANTIZED_PIECE_BYTES = 1 << 20

Array = npt.NDArray[Any]


def convert(source: Path, folder: Path) -> None:
    """Write the model in the GGUF file ``source`` into the new or empty ``folder``.

    Raises:
        GgufError: the file is broken, or holds something that mlx-lm could not run exactly.
        OSError: reading or writing failed.

    """
    header = read_header(source)
    vocabulary = Vocabulary(header)
    config = build_config(header, vocabulary)
    tensors = name_tensors(header, config)
    config |= _of_rope_tensors(header, config)
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(header, vocabulary, folder)
    shift = family_of(header).norm_shift
    loss = Loss()
    _write_weights(tensors, functools.partial(_pieces, norm_shift=shift, loss=loss), folder)
    if quantization := _quantization(tensors):
        config["quantization"] = quantization
    told = {
        "loss_percent": round(loss.percent(), 4),
        "types": {kind: round(loss.percent(kind), 4) for kind in loss.kinds},
    }
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id") if key in config}
    for name, content in ((CONVERSION, told), ("generation_config.json", generation), ("config.json", config)):
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")


def main(arguments: list[str]) -> int:
    """The command: 0, or 1 with one line on stderr."""
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m plimsoll.catalog.gguf.convert SRC DEST\n")
        return 2
    try:
        convert(Path(arguments[0]), Path(arguments[1]))
    except (GgufError, OSError) as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        return 1
    return 0


def _quantization(tensors: dict[str, Tensor]) -> dict[str, Any] | None:
    """mlx-lm's ``quantization``: the default on top, and each quantized module with its own bits."""
    modules = {
        name.removesuffix(".weight"): {"group_size": _GROUP, "bits": _BITS[tensor.layout.name]}
        for name, tensor in tensors.items()
        if tensor.layout.name in _BITS
    }
    return (
        {"group_size": _GROUP, "bits": min(module["bits"] for module in modules.values())} | modules
        if modules
        else None
    )


def _of_rope_tensors(header: Header, config: dict[str, Any]) -> dict[str, Any]:
    """What the tensors about rope add to the config."""
    freqs, long, short = (_numbers(header, name) for name in ROPE_TENSORS)
    if long and short:
        original = header.integer(
            "phi3.rope.scaling.original_context_length", config["max_position_embeddings"], least=1
        )
        scaling = {"type": "longrope", "long_factor": long, "short_factor": short}
        return {"rope_scaling": scaling, "original_max_position_embeddings": original}
    if not freqs:
        return {}
    found = llama3_scaling(freqs, config)
    if found and "rope_scaling" in config:
        raise GgufError("the model has rope_freqs.weight and rope scaling in its metadata: only one is supported")
    return {"rope_scaling": found} if found else {}


def _numbers(header: Header, name: str) -> list[float]:
    tensor = header.tensors.get(name)
    if tensor is None:
        return []
    if tensor.layout.name not in ("F32", "F16") or len(tensor.shape) != 1:
        raise GgufError(f"{name} is not a list of F32 numbers")
    return [float(value) for piece in _pieces(tensor) for value in piece[""].flat]


def _write_weights(
    tensors: dict[str, Tensor], pieces: Callable[[Tensor], Iterator[dict[str, Array]]], folder: Path
) -> None:
    """A safetensors file: length, JSON with every array's place, arrays."""
    places: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    at = 0
    for name, tensor in tensors.items():
        for suffix, (dtype, shape) in _parts(tensor).items():
            end = at + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
            places[_part_name(name, suffix)] = {
                "dtype": _SAFETENSORS_NAMES[dtype.str],
                "shape": shape,
                "data_offsets": [at, end],
            }
            at = end
    head = json.dumps(places).encode()
    head += b" " * (-len(head) % 8)
    with (folder / "model.safetensors").open("wb") as out:
        out.write(struct.pack("<Q", len(head)) + head)
        first = out.tell()
        for name, tensor in tensors.items():
            written = {suffix: places[_part_name(name, suffix)]["data_offsets"][0] for suffix in _parts(tensor)}
            for piece in pieces(tensor):
                for suffix, array in piece.items():
                    out.seek(first + written[suffix])
                    written[suffix] += out.write(np.ascontiguousarray(array).data)
        out.flush()
        os.fsync(out.fileno())  # a power cut must not leave a folder that only looks whole


def _part_name(name: str, suffix: str) -> str:
    return name if suffix in {"", "weight"} else f"{name.removesuffix('.weight')}.{suffix}"


def _parts(tensor: Tensor) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """The arrays that ``tensor`` becomes: one, or a quantized triple."""
    if plain := _PLAIN.get(tensor.layout.name):
        return {"": (plain, tensor.shape)}
    *rows, columns = tensor.shape
    packed = np.dtype("<u4"), (*rows, columns * _BITS[tensor.layout.name] // 32)
    grouped = np.dtype("<f2"), (*rows, columns // _GROUP)
    return {"weight": packed, "scales": grouped, "biases": grouped}


def _pieces(tensor: Tensor, *, norm_shift: float = 0.0, loss: Loss | None = None) -> Iterator[dict[str, Array]]:
    """The arrays of ``tensor`` cut into flat pieces; ``norm_shift`` is taken off the weights of norms."""
    layout = tensor.layout
    most = _REQUANTIZED_PIECE_BYTES if layout.name in REQUANTIZED else _PIECE_BYTES
    step = max(1, most // layout.block_bytes) * layout.block_bytes
    for raw in _raw(tensor, step):
        if len(raw) % layout.block_bytes or not raw:
            raise GgufError("the file became shorter while it was read")
        if plain := _PLAIN.get(layout.name):
            values = np.frombuffer(raw, plain)
            yield {"": values - plain.type(norm_shift) if norm_shift and "norm" in tensor.name else values}
            continue
        blocks = np.frombuffer(raw, np.uint8).reshape(-1, layout.block_bytes)
        arrays = requantize(layout, blocks, loss or Loss()) if layout.name in REQUANTIZED else _unpack(tensor, blocks)
        if not (np.isfinite(arrays["scales"]).all() and np.isfinite(arrays["biases"]).all()):
            raise GgufError(f"the tensor {tensor.name!r} holds scales that are not finite in float16")
        yield arrays


def _raw(tensor: Tensor, step: int) -> Iterator[bytes]:
    with open(tensor.path, "rb") as file:  # noqa: PTH123 - the path of a tensor is text
        file.seek(tensor.start)
        for done in range(0, tensor.size, step):
            yield file.read(min(step, tensor.size - done))


def _unpack(tensor: Tensor, blocks: Array) -> dict[str, Array]:
    """Blocks of bytes -> weight, scales, biases. A block begins with its scale, and in Q4_1 its minimum, in float16."""
    scales = blocks[:, :2].copy().view("<f2")
    with np.errstate(over="ignore", invalid="ignore"):
        if tensor.layout.name == "Q8_0":
            biases = scales * np.float16(-128)
            weight = blocks[:, 2:] ^ 0x80  # int8 -> the same number plus 128
        else:
            q4_1 = tensor.layout.name == "Q4_1"
            biases = blocks[:, 2:4].copy().view("<f2") if q4_1 else scales * np.float16(-8)
            weight = _interleave(blocks[:, 4:] if q4_1 else blocks[:, 2:])
    return {"weight": weight, "scales": scales, "biases": biases}


def _interleave(nibbles: Array) -> Array:
    """A GGUF block has values 0 to 15 in the low and 16 to 31 in the high halves of its bytes; MLX packs neighbours."""
    values: Array = np.concatenate((nibbles & 0x0F, nibbles >> 4), axis=1)
    packed: Array = values[:, 0::2] | (values[:, 1::2] << 4)
    return packed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
