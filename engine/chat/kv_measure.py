"""What a model's KV caches take, measured on the model itself."""

from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache

from plimsoll.engine.chat.kv_budget import STEP_TOKENS, KvCost
from plimsoll.engine.chat.row_batch import leaves
from plimsoll.engine.mlx_lm_internals import merge_caches
from plimsoll.engine.row_guard import poisons

READ_TOKENS = 2
"""Tokens that the caches hold after ``measure``, if all of them keep keys."""


def measure(model: nn.Module, chunk: int, layers: list[Any] | None = None) -> KvCost:
    """Read a few tokens and look at what the caches hold; ``chunk`` is how many tokens are read at once later.

    A tiny forward pass, 0.06 s for 135M parameters in float32 on two cores, and a second one where a cache keeps no
    keys, to see whether it grows.
    """
    layers = make_prompt_cache(model) if layers is None else layers
    _read(model, layers)
    before = [cache.nbytes for cache in leaves(layers)]
    if any(getattr(cache, "keys", None) is None for cache in leaves(layers)):
        _read(model, layers)
    rates: dict[int | None, int] = {}
    fixed = 0
    for cache, held in zip(leaves(layers), before, strict=True):
        keys = getattr(cache, "keys", None)
        window = getattr(cache, "max_size", None)
        if keys is not None:
            # A sliding window lets a whole chunk in before it drops what is too old.
            most = None if window is None else window + chunk + STEP_TOKENS
            rates[most] = rates.get(most, 0) + -(-cache.nbytes // keys.shape[2])
        else:
            # A recurrent state, or nothing: what does not grow between two reads is taken to stay as it is.
            fixed += held
            rates[None] = rates.get(None, 0) + -(-(cache.nbytes - held) // READ_TOKENS)
    return KvCost(tuple((size, most) for most, size in rates.items() if size), fixed)


def takes_a_batch(model: nn.Module, layers: list[Any]) -> bool:
    """Whether the model's own code takes several rows with ``layers`` as KV caches; nothing is computed.

    Some models count positions as if every cache held one row: mlx-lm's gpt_bigcode raises ``ValueError``.
    """
    try:
        model(mx.zeros((2, READ_TOKENS), dtype=mx.int32), cache=merge_caches([layers, layers]))
    except BaseException as error:
        if poisons(error):
            raise
        return False
    return True


def _read(model: nn.Module, layers: list[Any]) -> None:
    mx.eval(model(mx.zeros((1, READ_TOKENS), dtype=mx.int32), cache=layers), [layer.state for layer in layers])
