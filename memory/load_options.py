"""From a model's weight on disk to the ways it may be loaded, the best one first."""

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from plimsoll.memory.ledger import MIB, Need, Seat, distance_bytes
from plimsoll.memory.sample import Sample

_CPU_VALUE_BYTES = 4
_GPU_VALUE_BYTES = 2
# KV cache to reserve per model, in tokens: preferred, and minimum.
_GOOD_TOKENS = 32768
_MIN_TOKENS = 4096
# A cache grows in steps of this many tokens, so a conversation that fills the context takes one step more.
_KV_STEP = 256
_LEAST_KV_BYTES = 64 * MIB


class Weight(msgspec.Struct, frozen=True):
    """What the headers of a model's files say; bytes.

    ``stored_bytes`` as in the files, ``float32_bytes`` with floats as float32 and quantised parts as they are,
    ``dense_bytes`` all as dense float32. ``kv_values_per_token`` counts the numbers that the KV cache keeps for one
    token over all layers. ``context`` is the model's own, in tokens. ``no_chats``: it has no conversations.
    """

    stored_bytes: int
    float32_bytes: int
    dense_bytes: int
    kv_values_per_token: int
    context: int | None
    no_chats: bool = False


def ways_to_load(
    weight: Weight,
    *,
    device: Literal["cpu", "gpu"],
    dequantize: Literal["auto", "always", "never"],
    context: int | None,
    kv_budget_bytes: int | None,
    measured: dict[bool, int],
    leased: bool = False,
) -> tuple[Need, ...]:
    """The ways to load it in order of preference; ``measured`` maps "dequantised" to a footprint seen before.

    A CPU computes in float32, dense where that fits. With ``leased`` the KV caches begin with room for 4,096 tokens, of
    ``kv_budget_bytes`` at most, and grow by leases; a way with room for 32,768 tokens is preferred. Without, they have
    ``kv_budget_bytes`` for good; unset means room for 32,768 tokens, or for 4,096 where that does not fit.
    """
    value_bytes = _CPU_VALUE_BYTES if device == "cpu" else _GPU_VALUE_BYTES
    tokens = min(context or weight.context or _GOOD_TOKENS, weight.context or _GOOD_TOKENS)
    per_token = weight.kv_values_per_token * value_bytes
    if kv_budget_bytes is None or leased:
        wanted = [max(_LEAST_KV_BYTES, per_token * (bound + _KV_STEP)) for bound in (_GOOD_TOKENS, _MIN_TOKENS)]
    else:
        wanted = [kv_budget_bytes]
    if kv_budget_bytes is not None:
        wanted = [min(size, kv_budget_bytes) for size in wanted] if leased else wanted
    first = wanted[-1]
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
    if leased:
        ways = [
            msgspec.structs.replace(
                way,
                leased=True,
                kv_bytes=first,
                kv_most_bytes=kv_budget_bytes or 0,
                headroom_bytes=way.kv_bytes - first,
            )
            for way in ways
        ]
    return tuple(dict.fromkeys(ways))


class FasterWay(msgspec.Struct, frozen=True):
    """The way to load a model in its faster form, which needs ``required_bytes`` of the ``room_bytes`` there are."""

    required_bytes: int
    room_bytes: int

    @property
    def fits(self) -> bool:
        return self.required_bytes <= self.room_bytes


def dense_way(ways: Iterable[Need], need: Need) -> Need | None:
    """Of all the ``ways`` to load a model the faster, dense one; None if ``need``, by which it was loaded, is that."""
    return None if need.dequantize else next((way for way in ways if way.dequantize), None)


def faster_way(way: Need, others: Sequence[Seat], sample: Sample, warning_percent: float) -> FasterWay:
    """Whether a model that was loaded packed fits dense, by ``way``, beside ``others``.

    ``sample`` is without what its present worker holds. A load may fill memory up to critical, but this one has time:
    with all the headroom that it prefers it stays below the warning line, so that it is not the next one to be
    unloaded.
    """
    room = distance_bytes(others, sample, warning_percent)
    return FasterWay(way.total_bytes + way.headroom_bytes, max(0, room))


def longest_context(need: Need) -> int:
    """Tokens of the longest conversation, alone in a worker that was granted ``need``, once its lease has grown."""
    if need.longest:
        return need.longest
    if not need.kv_token_bytes:
        return need.context
    most = max(need.kv_bytes, need.kv_most_bytes)
    return min(need.context, max(0, most // need.kv_token_bytes - _KV_STEP))
