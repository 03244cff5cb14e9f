"""KV caches of finished answers, so that a chat's next turn skips what was read before.

mlx-lm's LRUPromptCache has the same job, but its search for the nearest entry took 0.4 s with 64 entries of 4000
tokens (every stream of the batch waits meanwhile), and it keeps extracted caches unevaluated: such an array
holds the whole batch's buffer, whatever its own ``nbytes`` says.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import can_trim_prompt_cache

from plimsoll.engine.layers import beginning_of


@dataclass(slots=True)
class _Entry:
    tokens: list[int]
    layers: list[Any]
    size: int


class PromptCache:
    """Least recently used entries leave first; ``nbytes`` never exceeds ``limit_bytes``.

    ``on_drop`` is called with the layers of what leaves or was not taken.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._entries: list[_Entry] = []  # the most recently used one is last
        self.on_drop: Callable[[Any], object] = lambda _layers: None

    @property
    def nbytes(self) -> int:
        return sum(entry.size for entry in self._entries)

    @property
    def limit_bytes(self) -> int:
        return self._limit

    def newest_first(self) -> Iterator[tuple[list[int], list[Any]]]:
        """The tokens and layers of every entry."""
        for entry in reversed(self._entries):
            yield entry.tokens, entry.layers

    def __len__(self) -> int:
        return len(self._entries)

    def known(self, tokens: list[int]) -> int:
        """The length of what ``take`` would give."""
        return self._longest(tokens)[1]

    def take(self, tokens: list[int]) -> tuple[list[Any] | None, int]:
        """Layers that hold the longest known beginning of ``tokens``, and its length.

        At least the last token is left over, for the generator needs one to read. The entry stays.
        """
        best, length = self._longest(tokens)
        if best is None:
            return None, 0
        self._touch(best)
        return beginning_of(best.layers, len(best.tokens), length), length

    def put(self, tokens: list[int], layers: list[Any]) -> None:
        """Keep ``layers``, which hold exactly ``tokens``, if there is room; what they make superfluous leaves."""
        size = sum(layer.nbytes for layer in layers)
        if size > self._limit or not tokens:
            self.on_drop(layers)
            return
        for entry in self._entries:
            if entry.tokens[: len(tokens)] == tokens and can_trim_prompt_cache(entry.layers):
                self._touch(entry)
                self.on_drop(layers)
                return
        mx.eval([layer.state for layer in layers])
        trimmable = can_trim_prompt_cache(layers)
        for entry in list(self._entries):
            if entry.tokens == tokens or (trimmable and tokens[: len(entry.tokens)] == entry.tokens):
                self._drop(entry)
        self._entries.append(_Entry(tokens, layers, size))
        self._evict()

    def resize(self, limit_bytes: int) -> None:
        """A new limit from now on; what does not fit any more leaves."""
        self._limit = limit_bytes
        self._evict()

    def clear(self) -> None:
        for entry in list(self._entries):
            self._drop(entry)

    def _longest(self, tokens: list[int]) -> tuple[_Entry | None, int]:
        best, length = None, 0
        for entry in self._entries:
            common = min(common_prefix(entry.tokens, tokens), len(tokens) - 1)
            usable = common == len(entry.tokens) or can_trim_prompt_cache(entry.layers)
            if usable and common > length:
                best, length = entry, common
        return best, length

    def _evict(self) -> None:
        while self.nbytes > self._limit:
            self._drop(self._entries[0])

    def _drop(self, entry: _Entry) -> None:
        # By identity: comparing entries by value would compare MLX arrays.
        self._entries = [other for other in self._entries if other is not entry]
        self.on_drop(entry.layers)

    def _touch(self, entry: _Entry) -> None:
        self._entries = [other for other in self._entries if other is not entry]
        self._entries.append(entry)


def common_prefix(left: list[int], right: list[int]) -> int:
    """How many tokens two prompts share at their beginning; slices are compared in C, so bisect over them."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
