"""A Llama-family GGUF file -> a folder that mlx-lm loads, without loss: ``python -m plimsoll.engine.gguf SRC DEST``.

Weights are copied in pieces of a few megabytes, so memory stays small whatever the model's size. Q4_0, Q4_1 and Q8_0
blocks become MLX's affine quantization with groups of 32, which holds the same numbers: ``scale * q + bias`` where
Q4_0's bias is ``-8 * scale`` and Q8_0's ``-128 * scale``.
"""

import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from plimsoll.engine.gguf_config import build_config, llama3_scaling, name_tensors
from plimsoll.engine.gguf_header import GgufError, Header, Tensor
from plimsoll.engine.gguf_reader import read_header
from plimsoll.engine.gguf_tokenizer import Vocabulary, write_tokenizer

_PIECE_BYTES = 8 << 20
_GROUP = 32
_BITS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}
_PLAIN: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
_SAFETENSORS_NAMES = {"<f4": "F32", "<f2": "F16", "<u4": "U32"}

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
    with source.open("rb") as file:
        if scaling := _rope_tensor(header, config, file):
            config["rope_scaling"] = scaling
        folder.mkdir(parents=True, exist_ok=True)
        write_tokenizer(header, vocabulary, folder)
        _write_weights(tensors, file, folder / "model.safetensors")
    if quantization := _quantization(tensors):
        config["quantization"] = quantization
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id") if key in config}
    for name, content in (("generation_config.json", generation), ("config.json", config)):
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")


def main(arguments: list[str]) -> int:
    """The command: 0, or 1 with one line on stderr."""
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m plimsoll.engine.gguf SRC DEST\n")
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


def _rope_tensor(header: Header, config: dict[str, Any], file: IO[bytes]) -> dict[str, Any] | None:
    tensor = header.tensors.get("rope_freqs.weight")
    if tensor is None:
        return None
    if tensor.layout.name not in _PLAIN or len(tensor.shape) != 1:
        raise GgufError("rope_freqs.weight is not a list of F32 numbers")
    values = [float(value) for piece in _pieces(tensor, file) for value in piece[""].flat]
    scaling = llama3_scaling(values, config)
    if scaling and "rope_scaling" in config:
        raise GgufError("the model has rope_freqs.weight and rope scaling in its metadata: only one is supported")
    return scaling


def _write_weights(tensors: dict[str, Tensor], file: IO[bytes], path: Path) -> None:
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
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(head)) + head)
        first = out.tell()
        for name, tensor in tensors.items():
            written = {suffix: places[_part_name(name, suffix)]["data_offsets"][0] for suffix in _parts(tensor)}
            for piece in _pieces(tensor, file):
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


def _pieces(tensor: Tensor, file: IO[bytes]) -> Iterator[dict[str, Array]]:
    """The arrays of ``tensor`` cut into flat pieces."""
    layout = tensor.layout
    step = _PIECE_BYTES // layout.block_bytes * layout.block_bytes
    file.seek(tensor.start)
    for done in range(0, tensor.size, step):
        raw = file.read(min(step, tensor.size - done))
        if len(raw) % layout.block_bytes or not raw:
            raise GgufError("the file became shorter while it was read")
        if plain := _PLAIN.get(layout.name):
            yield {"": np.frombuffer(raw, plain)}
        else:
            yield _unpack(tensor, np.frombuffer(raw, np.uint8).reshape(-1, layout.block_bytes))


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
    if not (np.isfinite(scales).all() and np.isfinite(biases).all()):
        raise GgufError(f"the tensor {tensor.name!r} holds scales that are not finite in float16")
    return {"weight": weight, "scales": scales, "biases": biases}


def _interleave(nibbles: Array) -> Array:
    """A GGUF block has values 0 to 15 in the low and 16 to 31 in the high halves of its bytes; MLX packs neighbours."""
    values: Array = np.concatenate((nibbles & 0x0F, nibbles >> 4), axis=1)
    packed: Array = values[:, 0::2] | (values[:, 1::2] << 4)
    return packed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
