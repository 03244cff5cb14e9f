"""What the pieces of one model look like, so that it never gets others; and their way from and to numpy."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from plimsoll.engine.chat.prefix_store.files import ArrayHead
from plimsoll.engine.chat.prefix_store.pieces import Arrays, Row, State, leaves

_SHAPES_AS_READ = ("ArraysCache",)


class Spec:
    """Learnt from caches that hold a few tokens."""

    def __init__(self, caches: list[Any], tokens: int) -> None:
        row = Row(caches)
        self._block = [None if array is None else _without_tokens(array) for array in row.cut(0, tokens)]
        self._states = row.states(tokens)
        self.names = [type(leaf).__name__ for leaf in leaves(caches)]

    def fits_block(self, arrays: Arrays, tokens: int) -> bool:
        """Whether these are what the plain caches hold of so many tokens."""
        if len(arrays) != len(self._block):
            return False
        for array, wanted in zip(arrays, self._block, strict=True):
            if (array is None) != (wanted is None):
                return False
            if array is not None and (_without_tokens(array) != wanted or array.shape[-2] != tokens):
                return False
        return True

    def fits_states(self, states: Sequence[State], position: int) -> bool:
        """Whether these are all the other caches' states after so many tokens."""
        return len(states) == len(self._states) and all(
            one.kind == known.kind
            and one.position == position
            and one.attributes.get("offset", position) == position
            and _alike(one.attributes, known.attributes, whole=known.kind in _SHAPES_AS_READ)
            for one, known in zip(states, self._states, strict=True)
        )


def to_numpy(arrays: Sequence[mx.array | None]) -> tuple[tuple[ArrayHead | None, ...], list[Any], list[Any]]:
    """Heads, numpy views, and the MLX arrays that must live as long as those."""
    heads: list[ArrayHead | None] = []
    plain: list[mx.array | None] = []
    for array in arrays:
        heads.append(None if array is None else ArrayHead(str(array.dtype).rpartition(".")[2], tuple(array.shape)))
        plain.append(array.view(mx.uint16) if array is not None and array.dtype == mx.bfloat16 else array)
    mx.eval([array for array in plain if array is not None])
    return tuple(heads), [None if array is None else np.asarray(array) for array in plain], plain


def to_mlx(heads: Sequence[ArrayHead | None], arrays: Sequence[Any]) -> Arrays:
    """Copies that belong to the calling thread."""
    made: Arrays = []
    for head, array in zip(heads, arrays, strict=True):
        one = None if array is None else mx.array(array)
        made.append(one.view(mx.bfloat16) if one is not None and head and head.dtype == "bfloat16" else one)
    return made


def pack(states: Sequence[State]) -> tuple[Any, list[mx.array]]:
    """What JSON can hold of states, and the arrays that it names by their places."""
    arrays: list[mx.array] = []

    def told(value: Any) -> Any:
        if isinstance(value, mx.array):
            arrays.append(value)
            return {"array": len(arrays) - 1}
        if isinstance(value, list | tuple):
            return {type(value).__name__: [told(part) for part in value]}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"a state with a {type(value).__name__}")

    packed = [
        {
            "kind": state.kind,
            "position": state.position,
            "attributes": {k: told(v) for k, v in state.attributes.items()},
        }
        for state in states
    ]
    return packed, arrays


def unpack(packed: Any, arrays: Arrays) -> list[State]:
    """The states; raises ``LookupError``, ``TypeError`` or ``AttributeError`` for what ``pack`` has not made."""

    def meant(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((what, inner),) = value.items()
        if what == "array":
            return arrays[inner]
        return (list if what == "list" else tuple)(meant(part) for part in inner)

    return [
        State(one["kind"], one["position"], {name: meant(value) for name, value in one["attributes"].items()})
        for one in packed
    ]


def _without_tokens(array: mx.array) -> tuple[Any, ...]:
    return array.dtype, array.ndim, *array.shape[:-2], array.shape[-1]


def _alike(value: Any, known: Any, *, whole: bool) -> bool:
    if isinstance(known, dict):
        return (
            isinstance(value, dict)
            and value.keys() == known.keys()
            and all(_alike(value[name], known[name], whole=whole) for name in known)
        )
    if isinstance(known, list | tuple):
        return (
            isinstance(value, list | tuple)
            and len(value) == len(known)
            and all(_alike(one, other, whole=whole) for one, other in zip(value, known, strict=True))
        )
    if isinstance(known, mx.array):
        if not isinstance(value, mx.array) or (value.dtype, value.ndim) != (known.dtype, known.ndim):
            return False
        # How many tokens a window or a chunk holds depends on the position; all else never changes.
        return value.shape[-1] == known.shape[-1] if whole else _without_tokens(value) == _without_tokens(known)
    # A place that was empty after a few tokens may be filled later.
    return known is None or not isinstance(value, mx.array | list | tuple | dict)
