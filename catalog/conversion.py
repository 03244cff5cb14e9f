"""A model's weights in another precision: what is asked for, what it takes, and the folder that it becomes."""

import json
from collections.abc import Mapping
from pathlib import Path

import msgspec

from plimsoll.catalog import child_process, files
from plimsoll.catalog.fetch import make_once
from plimsoll.catalog.files import Tensor, read_object, read_tensors
from plimsoll.catalog.source import CONVERSION, Progress
from plimsoll.catalog.weigh import weigh
from plimsoll.errors import BadRequest, LoadFailed
from plimsoll.memory.load_options import Weight

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
RECIPES = ("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6")
DTYPES = {"float16": 2, "bfloat16": 2, "float32": 4}
"""The types that weights may have, with their bytes."""
# Bits and values of a group, as mlx-lm has them for the modes that leave no choice.
_FIXED_MODES = {"mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}
MODES = ("affine", *_FIXED_MODES)

# mlx-lm holds one file of the result at a time; the child makes files of this size.
FILE_BYTES = 1 << 30
_MADE_BY = "plimsoll convert"
# Python, MLX and mlx-lm themselves take 0.2 GB, a large vocabulary's tokenizer as much.
_BASE_BYTES = 1 << 30


class Conversion(msgspec.Struct, frozen=True):
    """What is to be done: quantise (the default), or with ``dequantize`` make dense, or cast to ``dtype`` alone."""

    bits: int | None = None
    group_size: int | None = None
    mode: str = "affine"
    dtype: str | None = None
    dequantize: bool = False
    recipe: str | None = None

    @property
    def quantizes(self) -> bool:
        is_named = self.bits or self.group_size or self.recipe or self.mode != "affine"
        return bool(is_named) or not (self.dequantize or self.dtype)

    @property
    def group(self) -> int:
        """The values of one group."""
        return _FIXED_MODES.get(self.mode, (0, self.group_size or 64))[1]

    @property
    def most_bits(self) -> int:
        """The bits of one quantised value; of a recipe's the most."""
        if self.recipe:
            return int(self.recipe[-1])
        return _FIXED_MODES.get(self.mode, (self.bits or 4, 0))[0]

    @property
    def suffix(self) -> str:
        """What tells the result's name from the source's."""
        if self.recipe:
            return self.recipe.replace("_", "-")
        if self.mode != "affine":
            return self.mode
        return f"{self.most_bits}bit" if self.quantizes else self.dtype or "dense"

    def check(self) -> None:
        """Raises ``BadRequest`` for what MLX can't do, and for options that contradict each other."""
        for option, value, allowed in (
            ("--q-bits", self.bits, BITS),
            ("--q-group-size", self.group_size, GROUP_SIZES),
            ("--q-mode", self.mode, MODES),
            ("--q-recipe", self.recipe, RECIPES),
            ("--dtype", self.dtype, tuple(DTYPES)),
        ):
            if value is not None and value not in allowed:
                raise BadRequest(f"{option} is {value}, expected one of {', '.join(map(str, allowed))}")
        if self.dequantize and self.quantizes:
            raise BadRequest("--dequantize goes with --dtype alone: a model is quantised or made dense, not both")
        if self.mode != "affine" and (self.bits or self.group_size or self.recipe):
            raise BadRequest(f"--q-mode {self.mode} has bits and groups of its own: leave the other options out")
        if self.recipe and self.bits:
            raise BadRequest(f"--q-recipe {self.recipe} says how many bits each layer gets: leave --q-bits out")


class Estimate(msgspec.Struct, frozen=True):
    """What a conversion takes: ``weight`` of the result, and ``memory_bytes``, the bound of its process."""

    weight: Weight
    memory_bytes: int


def estimate(folder: Path, conversion: Conversion) -> Estimate:
    """An upper estimate from the headers of the model in ``folder``. Raises ``OSError`` or ``ValueError``."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors |= read_tensors(file)
    weight = weigh(folder)
    values = weight.dense_bytes // 4
    size = DTYPES[conversion.dtype] if conversion.dtype else _largest_float(tensors)
    result, as_float32, largest = values * size, 4 * values, _largest_values(tensors)
    if conversion.quantizes:
        # Norms and biases stay as they are, and so do rows that no group divides.
        dense = sum(tensor.values for tensor in tensors.values() if not _is_quantizable(tensor, conversion.group))
        packed = (values - dense) * conversion.most_bits // 8
        groups = 2 * (values - dense) // conversion.group
        result, as_float32 = packed + (groups + dense) * size, packed + (groups + dense) * 4
    # One file, of which MLX has a copy while it writes, and the source of one tensor with what is made of it.
    needed = _BASE_BYTES + 2 * min(result, FILE_BYTES) + 12 * largest
    return Estimate(
        msgspec.structs.replace(weight, stored_bytes=result, float32_bytes=as_float32),
        needed,
    )


def refuse_again(folder: Path, name: str, conversion: Conversion) -> None:
    """Raises ``BadRequest`` where a model is to be quantised that is so already. Raises as ``read_object``."""
    config = read_object(folder / "config.json")
    if conversion.quantizes and (config.get("quantization") or config.get("quantization_config")):
        raise BadRequest(
            f"{name} is quantised already, and quantising it again would lose more: convert the model that it was "
            "made of, or make it dense first with --dequantize"
        )
    if conversion.dequantize and not config.get("quantization"):
        raise BadRequest(f"{name} is not quantised by MLX: there is nothing to make dense")


def convert_folder(source: Path, conversion: Conversion, folder: Path, *, most_bytes: int, progress: Progress) -> None:
    """Make ``folder`` of the MLX or Hugging Face model in ``source``, whole or not at all.

    A process of its own does it, which is ended above ``most_bytes`` of memory. Raises ``LoadFailed`` or ``OSError``.
    """

    def make(new: Path, _: Path) -> None:
        def tick() -> None:
            progress("convert", sum(file.stat().st_size for file in new.glob("model*.safetensors")), 0)

        told = msgspec.json.encode(conversion).decode()
        failure = child_process.run(
            "plimsoll.engine.load.mlx_conversion", told, str(source), str(new), tick=tick, most_bytes=most_bytes
        )
        if failure:
            raise LoadFailed(f"{source} can't be converted: {failure}")
        (new / CONVERSION).write_text(json.dumps({"made_by": _MADE_BY, "from": str(source)}), encoding="utf-8")

    make_once(folder, make, progress)


def is_result(folder: Path) -> bool:
    """Whether ``folder`` is what a conversion has made, so that it may be deleted again."""
    return not folder.is_symlink() and files.conversion(folder).get("made_by") == _MADE_BY


def _largest_float(tensors: Mapping[str, Tensor]) -> int:
    """The bytes of the widest floating-point values."""
    floats = (tensor for tensor in tensors.values() if tensor.is_float and tensor.values)
    return max((tensor.nbytes // tensor.values for tensor in floats), default=2)


def _largest_values(tensors: Mapping[str, Tensor]) -> int:
    """Of one tensor once it is dense; a word of packed values holds eight, give or take."""
    return max((tensor.values * (1 if tensor.is_float else 8) for tensor in tensors.values()), default=0)


def _is_quantizable(tensor: Tensor, group: int) -> bool:
    return len(tensor.shape) > 1 and tensor.shape[-1] % group == 0
