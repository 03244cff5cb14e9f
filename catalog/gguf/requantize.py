"""Blocks of GGUF's types that MLX does not have -> MLX's affine quantization with groups of 32, and what that loses.

Q4_K, Q5_0, Q5_1 and Q5_K have evenly spaced steps in every 32 values, as MLX does: nothing is lost, but that the two
with a K have products for scale and minimum, which are rounded to float16. All other types are dequantised by the
``gguf`` package and rounded to 64 or 256 steps between each group's least and largest value.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from plimsoll.catalog.gguf.reader import Layout

Array = npt.NDArray[Any]
GROUP = 32
_COARSE = ("Q2_K", "Q3_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0")
_FINE = ("Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4")
_EVEN = {"Q4_K": 4, "Q5_0": 5, "Q5_1": 5, "Q5_K": 5}
BITS = _EVEN | dict.fromkeys(_COARSE, 6) | dict.fromkeys(_FINE, 8)
"""The bits that values of each type get. A type of up to 3 bits has an error of its own far above that of 64 steps."""


class Loss:
    """How far the converted weights are from the file's: the mean square of the differences, to that of the values."""

    def __init__(self) -> None:
        self._squares: dict[str, float] = {}
        self._errors: dict[str, float] = {}

    def add(self, kind: str, values: Array, found: Array) -> None:
        """Values of the type ``kind``, and what became of them."""
        self._squares[kind] = self._squares.get(kind, 0.0) + float(np.square(values, dtype=np.float64).sum())
        self._errors[kind] = self._errors.get(kind, 0.0) + float(np.square(values - found, dtype=np.float64).sum())

    def percent(self, kind: str | None = None) -> float:
        """The root of the mean square error, in percent of the values'; of all types, or of one."""
        kinds = self._squares if kind is None else (kind,)
        squares = sum(self._squares[one] for one in kinds)
        return 100 * float(np.sqrt(sum(self._errors[one] for one in kinds) / squares)) if squares else 0.0

    @property
    def kinds(self) -> list[str]:
        """The types of which there were values."""
        return list(self._squares)


def requantize(layout: Layout, blocks: Array, loss: Loss) -> dict[str, Array]:
    """Blocks of bytes, one a row -> the arrays weight (bytes), scales and biases; notes what is lost."""
    import gguf  # noqa: PLC0415 - most files hold types that MLX has, and its tables of codes take a while

    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        values = gguf.dequantize(blocks, gguf.GGMLQuantizationType[layout.name]).reshape(-1, GROUP)
        most = 2 ** BITS[layout.name] - 1
        scales, least = _own_steps(layout.name, blocks) if layout.name in _EVEN else _new_steps(values, most)
        steps = np.rint((values - least) / np.where(scales == 0, np.float32(1), scales))
        steps = np.clip(steps, 0, most).astype(np.uint8)
        scales, biases = scales.astype("<f2"), least.astype("<f2")
        loss.add(layout.name, values, scales.astype(np.float32) * steps + biases.astype(np.float32))
    return {"weight": _packed(steps, BITS[layout.name]), "scales": scales, "biases": biases}


def _own_steps(name: str, blocks: Array) -> tuple[Array, Array]:
    """The scale and the least value of each group; a block begins with float16 numbers."""
    import gguf  # noqa: PLC0415 - as above

    scale, second = (blocks[:, at : at + 2].copy().view("<f2").astype(np.float32) for at in (0, 2))
    if name in ("Q4_K", "Q5_K"):
        factors, least_factors = gguf.quants.Q4_K.get_scale_min(blocks[:, 4:16])
        return (scale * factors).reshape(-1, 1), (-second * least_factors).reshape(-1, 1)
    return scale, second if name == "Q5_1" else -16 * scale


def _new_steps(values: Array, most: int) -> tuple[Array, Array]:
    """``most`` steps from each group's least to its largest value, both ends in float16 from the start."""
    least = values.min(axis=1, keepdims=True).astype("<f2").astype(np.float32)
    return ((values.max(axis=1, keepdims=True) - least) / most).astype("<f2").astype(np.float32), least


def _packed(steps: Array, bits: int) -> Array:
    """MLX packs values from the lowest bit on, without gaps: eight values of 5 bits are five bytes."""
    if bits == 8:
        return steps
    if bits == 4:
        packed: Array = steps[:, 0::2] | (steps[:, 1::2] << 4)
        return packed
    single = np.unpackbits(steps[..., None], axis=-1, count=bits, bitorder="little")
    return np.packbits(single.reshape(len(steps), -1), axis=-1, bitorder="little")
