"""Blocks of GGUF's types that MLX does not have -> MLX's affine quantization with groups of 32, and what that loses.

Q4_K holds a scale and a minimum for every 32 values, as MLX does: only their products are rounded to float16. All
other types are dequantised by the ``gguf`` package and rounded to 64 or 256 steps between each group's least and
largest value.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from plimsoll.catalog.gguf.reader import Layout

Array = npt.NDArray[Any]
GROUP = 32
_COARSE = ("Q2_K", "Q3_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0")
_FINE = ("Q5_0", "Q5_1", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4")
BITS = {"Q4_K": 4} | dict.fromkeys(_COARSE, 6) | dict.fromkeys(_FINE, 8)
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
        if layout.name == "Q4_K":
            steps, scales, biases = _q4_k(blocks, *gguf.quants.Q4_K.get_scale_min(blocks[:, 4:16]))
        else:
            steps, scales, biases = _rounded(values, 2 ** BITS[layout.name] - 1)
        loss.add(layout.name, values, scales.astype(np.float32) * steps + biases.astype(np.float32))
    return {"weight": _packed(steps, BITS[layout.name]), "scales": scales, "biases": biases}


def _q4_k(blocks: Array, scales: Array, least_scales: Array) -> tuple[Array, Array, Array]:
    """The steps, scales and biases in blocks: two float16, 12 bytes with ``scales`` and minima of 8 groups, nibbles."""
    scale, least = (blocks[:, at : at + 2].copy().view("<f2").astype(np.float32) for at in (0, 2))
    nibbles = blocks[:, 16:].reshape(-1, 4, 1, GROUP) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1)
    steps = (nibbles & 0x0F).reshape(-1, GROUP)
    products = (scale * scales).reshape(-1, 1), (-least * least_scales).reshape(-1, 1)
    return steps, products[0].astype("<f2"), products[1].astype("<f2")


def _rounded(values: Array, most: int) -> tuple[Array, Array, Array]:
    least = values.min(axis=1, keepdims=True)
    biases = least.astype("<f2")
    scales = ((values.max(axis=1, keepdims=True) - biases.astype(np.float32)) / most).astype("<f2")
    exact = np.where(scales == 0, np.float32(1), scales.astype(np.float32))
    steps = np.clip(np.rint((values - biases.astype(np.float32)) / exact), 0, most).astype(np.uint8)
    return steps, scales, biases


def _packed(steps: Array, bits: int) -> Array:
    """MLX packs values from the lowest bit on, without gaps: four values of 6 bits are three bytes."""
    if bits == 8:
        return steps
    if bits == 4:
        packed: Array = steps[:, 0::2] | (steps[:, 1::2] << 4)
        return packed
    a, b, c, d = (steps[:, at::4] for at in range(4))
    return np.stack((a | (b << 6), (b >> 2) | (c << 4), (c >> 4) | (d << 2)), axis=-1).reshape(len(steps), -1)
