"""Exponentials on a CPU through numpy, which computes one in 0.4 ns; MLX's Linux wheel takes 10 ns.

They are most of what attention to a long prompt takes there, and a part of every pass over the weights.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

# In the place of minus infinity, less which minus infinity would be no number.
_LOWEST = float(np.finfo(np.float32).min)
# Smaller than this an array is not worth leaving MLX for.
_LEAST = 4096
# Floats that are worked on at a time: they stay in a core's own cache.
_BLOCK = 65536
# Scores that one turn of attention holds at most, where one query has no more: a long prompt's queries take turns.
_MOST_SCORES = 2**20

_attend = mx.fast.scaled_dot_product_attention
_exp, _sigmoid, _tanh, _logsumexp = mx.exp, mx.sigmoid, mx.tanh, mx.logsumexp

Floats = npt.NDArray[np.float32]


def make_cpu_fast() -> None:
    """For the whole process, whose default device is a CPU: put these functions in the place of MLX's own.

    Models and mlx-lm call them unawares. They evaluate at once what they are given: on a CPU nothing is lost by that.
    """
    # It would run a C++ compiler per kernel; measured as fast without, and many machines have none.
    mx.disable_compile()
    replaced = {"exp": exp, "sigmoid": sigmoid, "tanh": tanh, "logsumexp": logsumexp}
    for name, function in replaced.items():
        setattr(mx, name, function)
    vars(mx.fast)["scaled_dot_product_attention"] = attend


def attend(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    scale: float,
    mask: mx.array | str | None = None,
    sinks: mx.array | None = None,
    **others: Any,
) -> mx.array:
    """As ``mx.fast.scaled_dot_product_attention``, to which goes what is small, not float32 or has more options.

    ``queries`` of shape (rows, heads, length, width), ``keys`` and ``values`` (rows, KV heads, context, width).
    """
    rows, heads, length, _ = queries.shape
    context = keys.shape[2]
    scores = rows * heads * length * context
    if scores < _LEAST or sinks is not None or others or not all(map(_is_float32, (queries, keys, values))):
        return _attend(queries, keys, values, scale=scale, mask=mask, sinks=sinks, **others)
    turn = max(1, _MOST_SCORES * length // scores)
    queries = queries * scale
    parts = []
    for start in range(0, length, turn):
        part = range(start, min(start + turn, length))
        allowed = _mask_of(mask, part, length, context)
        parts.append(_attend_to_all(queries[:, :, part.start : part.stop], keys, values, allowed))
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)


def exp(values: mx.array, **others: Any) -> mx.array:
    """As ``mx.exp``."""
    return _each(values, _exp, lambda block: np.exp(block, out=block), others)


def tanh(values: mx.array, **others: Any) -> mx.array:
    """As ``mx.tanh``."""
    return _each(values, _tanh, lambda block: np.tanh(block, out=block), others)


def sigmoid(values: mx.array, **others: Any) -> mx.array:
    """As ``mx.sigmoid``."""

    def compute(block: Floats) -> None:
        np.exp(np.negative(block, out=block), out=block)
        np.reciprocal(np.add(block, 1, out=block), out=block)

    return _each(values, _sigmoid, compute, others)


def logsumexp(values: mx.array, axis: Any = None, keepdims: bool = False, **others: Any) -> mx.array:
    """As ``mx.logsumexp``; numpy takes part where it is over the last axis alone."""
    if not _is_float32(values) or values.size < _LEAST or axis not in (-1, values.ndim - 1) or others:
        return _logsumexp(values, axis, keepdims, **others)
    most = mx.maximum(mx.max(values, axis=-1, keepdims=True), _LOWEST)
    powers = values - most
    sums = mx.log(_exp_and_sum(powers)) + most
    return sums if keepdims else sums.squeeze(-1)


def _each(
    values: mx.array,
    original: Callable[..., mx.array],
    compute: Callable[[Floats], Any],
    others: dict[str, Any],
) -> mx.array:
    """The elements of ``values`` as ``compute`` changes them in place; ``original`` where that is not worth it."""
    if not _is_float32(values) or values.size < _LEAST or others:
        return original(values, **others)
    result = mx.contiguous(values) + 0
    with np.errstate(over="ignore"):  # infinity is what MLX gives, too
        for block in _blocks(_floats(result).reshape(-1, 1)):
            compute(block)
    return result


def _attend_to_all(queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | None) -> mx.array:
    """``queries`` are scaled. Heads that share keys are multiplied with them together."""
    rows, heads, length, width = queries.shape
    shared, context = keys.shape[1:3]
    scores = queries.reshape(rows, shared, -1, width) @ keys.swapaxes(-1, -2)
    if mask is not None:
        scores = _masked(scores.reshape(rows, shared, heads // shared, length, context), mask)
        scores = scores.reshape(rows, shared, -1, context)
    sums = _exp_and_sum(scores)
    return ((scores @ values) / sums).reshape(rows, heads, length, values.shape[-1])


def _exp_and_sum(scores: mx.array) -> mx.array:
    """Put exponentials in the place of ``scores``, each less the largest of its row; the sums of rows."""
    view = _floats(scores)
    flat = view.reshape(-1, view.shape[-1])
    sums: Floats = np.empty((len(flat), 1), np.float32)
    done = 0
    for block in _blocks(flat):
        np.subtract(block, block.max(axis=-1, keepdims=True, initial=_LOWEST), out=block)
        np.exp(block, out=block)
        np.sum(block, axis=-1, keepdims=True, out=sums[done : done + len(block)])
        done += len(block)
    return mx.array(sums.reshape(*view.shape[:-1], 1))


def _mask_of(mask: mx.array | str | None, part: range, length: int, context: int) -> mx.array | None:
    """What a ``part`` of the queries, ``length`` in all, may look at."""
    if mask is None:
        return None
    if isinstance(mask, str):  # "causal": the queries are the last of the context
        before = context - length
        return mx.arange(context)[None] <= mx.arange(before + part.start, before + part.stop)[:, None]
    return mask if mask.shape[-2] == 1 else mask[..., part.start : part.stop, :]


def _masked(scores: mx.array, mask: mx.array) -> mx.array:
    """``scores`` of shape (rows, KV heads, heads of each, queries, context), the ``mask`` as MLX takes it."""
    if mask.ndim >= 3:
        heads = mask.shape[-3]
        mask = mask.reshape(*mask.shape[:-3], *((1, 1) if heads == 1 else scores.shape[1:3]), *mask.shape[-2:])
    return mx.where(mask, scores, _LOWEST) if mask.dtype == mx.bool_ else scores + mask


def _floats(array: mx.array) -> Floats:
    """The evaluated array's own memory, to be written to."""
    mx.eval(array)
    return np.array(array, copy=False)


def _blocks(rows: Floats) -> Iterator[Floats]:
    step = max(1, _BLOCK // math.prod(rows.shape[1:]))
    return (rows[start : start + step] for start in range(0, len(rows), step))


def _is_float32(value: Any) -> bool:
    return isinstance(value, mx.array) and value.dtype == mx.float32
