"""Cuts the KV caches of a row into pieces, and puts pieces together to the caches of a new row.

mlx-lm's caches are of two kinds here. A *plain* cache keeps keys and values of every token, so it can be cut at any
token: its pieces are the arrays of a block of tokens. Every other cache (a sliding window, a recurrent state, a chunk)
can only be kept as it stands at one position: its piece is a *state*.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import (
    ArraysCache,
    BatchKVCache,
    BatchRotatingKVCache,
    ConcatenateKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
)

from plimsoll.engine.mlx_lm_internals import temporal_order

Arrays = list[mx.array | None]
"""What plain caches hold of one block, cache after cache; None for a cache that the model leaves empty."""

_PLAIN = (KVCache, ConcatenateKVCache, QuantizedKVCache, BatchKVCache)
_TOKENS = -2
"""The axis of plain caches and windows that counts tokens."""
SPARE_TOKENS = 64
"""Tokens that a window's state keeps beyond the window, so that it serves prompts that leave a little earlier too."""


@dataclass(slots=True)
class State:
    """One cache that is not plain, as it stands after ``position`` tokens.

    ``attributes`` are those of the cache's object; arrays in them belong to this state alone.
    """

    kind: str
    position: int
    attributes: dict[str, Any]

    @property
    def reach(self) -> int:
        """The earliest position that the state can be cut back to."""
        if self.kind != RotatingKVCache.__name__ or self.attributes["keys"] is None:
            return self.position
        held, window = self.attributes["keys"].shape[_TOKENS], self.attributes["max_size"]
        return 1 if held == self.position else self.position - max(0, held - window)

    def arrays(self) -> Iterator[mx.array]:
        """Every array of the state, in a fixed order."""
        yield from _arrays(self.attributes)

    def cut_back(self, position: int) -> dict[str, Any]:
        """The attributes at an earlier position, which must be within reach."""
        if position == self.position:
            copied: dict[str, Any] = _copied(self.attributes)
            return copied
        keys, values = self.attributes["keys"], self.attributes["values"]
        end = keys.shape[_TOKENS] - (self.position - position)
        begin = max(0, end - self.attributes["max_size"])
        cut = {"keys": keys[..., begin:end, :], "values": values[..., begin:end, :]}
        return {**self.attributes, **cut, "offset": position, "_idx": end - begin}


class Row:
    """The caches of one row, in a running batch or out of it; nothing is copied before it is asked for."""

    def __init__(self, caches: Sequence[Any], index: int = 0) -> None:
        """``index`` is the row's place in a batch; ``caches`` of a single row ignore it."""
        self._leaves = list(leaves(caches))
        self._index = index

    def holds(self, tokens: int) -> bool:
        """Whether every cache stands after exactly so many tokens, as far as caches tell."""
        return all(self._length(leaf) in (None, tokens) for leaf in self._leaves)

    def cut(self, begin: int, end: int) -> Arrays:
        """The tokens from ``begin`` to ``end`` of the plain caches; copies, not evaluated yet."""
        cut: Arrays = []
        for leaf in self._leaves:
            if isinstance(leaf, _PLAIN):
                first, arrays = self._plain(leaf)
                cut += [
                    None if array is None else mx.contiguous(array[..., first + begin : first + end, :])
                    for array in arrays
                ]
        return cut

    def states(self, position: int) -> list[State]:
        """All other caches as they stand, after ``position`` tokens; copies, not evaluated yet."""
        return [_state(leaf, self._index, position) for leaf in self._leaves if not isinstance(leaf, _PLAIN)]

    def _plain(self, leaf: Any) -> tuple[int, Arrays]:
        """Where the row's tokens begin, and the arrays that hold the row."""
        if leaf.keys is None:
            return 0, [None, None]
        if isinstance(leaf, QuantizedKVCache):
            return 0, [*leaf.keys, *leaf.values]
        if isinstance(leaf, BatchKVCache):
            row = slice(self._index, self._index + 1)
            padding: Any = leaf.left_padding[self._index].item()
            return int(padding), [leaf.keys[row], leaf.values[row]]
        return 0, [leaf.keys, leaf.values]

    def _length(self, leaf: Any) -> int | None:
        if isinstance(leaf, ArraysCache) or leaf.empty():
            return None
        offset = getattr(leaf, "offset", None)
        place: Any = offset
        return int(place[self._index].item()) if isinstance(offset, mx.array) else offset


def leaves(caches: Any) -> Iterator[Any]:
    """The caches themselves: some models nest several in one layer."""
    for cache in caches:
        if hasattr(cache, "caches"):
            yield from leaves(cache.caches)
        else:
            yield cache


def is_plain(cache: Any) -> bool:
    """Whether the cache can be cut at any token."""
    return isinstance(cache, _PLAIN)


def can_batch(caches: Sequence[Any]) -> bool:
    """Whether mlx-lm can merge rows with such caches into one batch."""
    return all(hasattr(cache, "merge") for cache in caches)


def assemble(empty: list[Any], blocks: Sequence[Arrays], length: int, states: Sequence[State]) -> list[Any]:
    """Fill the ``empty`` caches of the model with the first ``length`` tokens of consecutive ``blocks``.

    ``states`` reach back to ``length``. Nothing is evaluated; the pieces stay as they are.
    """
    place, waiting = 0, iter(states)
    for leaf in leaves(empty):
        if not is_plain(leaf):
            vars(leaf).update(next(waiting).cut_back(length))
            continue
        width = 6 if isinstance(leaf, QuantizedKVCache) else 2
        joined = [_joined([block[place + part] for block in blocks], length) for part in range(width)]
        place += width
        if joined[0] is None:
            continue
        half = width // 2
        leaf.keys, leaf.values = joined if half == 1 else (tuple(joined[:half]), tuple(joined[half:]))
        leaf.offset = length
    return empty


def arrays_bytes(arrays: Sequence[mx.array | None]) -> int:
    """What they take, evaluated or not."""
    return sum(math.prod(array.shape) * array.dtype.size for array in arrays if array is not None)


def _joined(parts: list[mx.array | None], length: int) -> mx.array | None:
    given = [part for part in parts if part is not None]
    if not given:
        return None
    joined = given[0] if len(given) == 1 else mx.concatenate(given, axis=_TOKENS)
    # Always a new object: mlx-lm's caches assign into the one they have.
    return joined[..., :length, :]


def _state(leaf: Any, index: int, position: int) -> State:
    alone = _alone(leaf, index)
    attributes = dict(vars(alone))
    if isinstance(alone, RotatingKVCache) and alone.keys is not None:
        # In the order of the tokens, and no more of them than may be wanted again.
        held = min(position, alone.max_size + SPARE_TOKENS)
        for name in ("keys", "values"):
            attributes[name] = temporal_order(alone, attributes[name])[..., -held:, :]
        attributes["offset"], attributes["_idx"] = position, attributes["keys"].shape[_TOKENS]
    return State(type(alone).__name__, position, _copied(attributes))


def _alone(leaf: Any, index: int) -> Any:
    """The cache of one row; mlx-lm's own way stumbles over what is still empty."""
    if isinstance(leaf, ArraysCache):
        alone = ArraysCache(len(leaf.cache))
        alone.cache = [None if array is None else array[index : index + 1] for array in leaf.cache]
        return alone
    if isinstance(leaf, BatchRotatingKVCache):
        return RotatingKVCache(leaf.max_size) if leaf.keys is None else leaf.extract(index)
    return leaf


def _copied(value: Any) -> Any:
    """The same with arrays of its own; MLX copies what is part of a larger buffer."""
    if isinstance(value, mx.array):
        return mx.contiguous(value)
    if isinstance(value, dict):
        return {name: _copied(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(part) for part in value)
    return value


def _arrays(value: Any) -> Iterator[mx.array]:
    if isinstance(value, mx.array):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _arrays(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _arrays(part)
