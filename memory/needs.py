"""From a model's weight on disk to the ways it may be loaded, the best one first."""

from typing import Literal

import msgspec

from plimsoll.memory.plan import MIB, Need

_CPU_VALUE_BYTES = 4
_GPU_VALUE_BYTES = 2
# Tokens of KV cache over all conversations of one model: what is worth keeping free, and what will do.
_GOOD_TOKENS = 32768
_MIN_TOKENS = 4096
# A cache grows in steps of this many tokens, so a conversation that fills the context takes one step more.
_KV_STEP = 256
_LEAST_KV_BYTES = 64 * MIB


class Weight(msgspec.Struct, frozen=True):
    """What the headers of a model's files say; bytes.

    ``stored_bytes`` as in the files, ``float32_bytes`` with floats as float32 and quantised parts as they are,
    ``dense_bytes`` all as dense float32. ``kv_values_per_token`` counts the numbers that the KV cache keeps for one
    token over all layers. ``context`` is the model's own, in tokens.
    """

    stored_bytes: int
    float32_bytes: int
    dense_bytes: int
    kv_values_per_token: int
    context: int | None


def ways_to_load(
    weight: Weight,
    *,
    device: Literal["cpu", "gpu"],
    dequantize: Literal["auto", "always", "never"],
    context: int | None,
    kv_budget_bytes: int | None,
    measured: dict[bool, int],
) -> tuple[Need, ...]:
    """The ways to load it in order of preference; ``measured`` maps "dequantised" to a footprint seen before.

    A CPU computes in float32, dense where that fits. ``kv_budget_bytes`` unset means room for 32,768 tokens, or for
    4,096 where that does not fit.
    """
    value_bytes = _CPU_VALUE_BYTES if device == "cpu" else _GPU_VALUE_BYTES
    tokens = min(context or weight.context or _GOOD_TOKENS, weight.context or _GOOD_TOKENS)
    per_token = weight.kv_values_per_token * value_bytes
    if kv_budget_bytes is None:
        wanted = [max(_LEAST_KV_BYTES, per_token * (bound + _KV_STEP)) for bound in (_GOOD_TOKENS, _MIN_TOKENS)]
    else:
        wanted = [kv_budget_bytes]
    forms: list[tuple[int, bool]] = []
    if device == "gpu":
        forms.append((weight.stored_bytes, False))
    else:
        quantised = weight.dense_bytes > weight.float32_bytes
        if quantised and dequantize != "never":
            forms.append((weight.dense_bytes, True))
        if not quantised or dequantize != "always":
            forms.append((weight.float32_bytes, False))
    ways = [Need(size, kv, measured.get(dense, 0), dense, per_token, tokens) for kv in wanted for size, dense in forms]
    return tuple(dict.fromkeys(ways))


def longest_context(need: Need, room_bytes: int) -> int:
    """Tokens of one conversation that fit if the model is loaded this way into ``room_bytes``."""
    for_kv = room_bytes - (need.total_bytes - need.kv_bytes)
    return min(need.context, max(0, for_kv) // need.kv_token_bytes) if need.kv_token_bytes else need.context
