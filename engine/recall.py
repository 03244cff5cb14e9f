"""What is known of a prompt before it is read: kept KV caches, here or on disk, and the rows of running answers."""

import copy
from collections.abc import Iterable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import BatchKVCache

from plimsoll.engine.disk_cache import DiskCache, Stored, can_be_stored, layers_of
from plimsoll.engine.kv_measure import leaves
from plimsoll.engine.layers import Layers
from plimsoll.engine.live import Live
from plimsoll.engine.prompt_cache import PromptCache, common_prefix

# A shorter common beginning is read faster than it is copied.
_WORTH_TOKENS = 16
# How long a look at the disk may keep commands waiting.
_LOOK_S = 0.02


class Recall:
    """Finds the longest beginning of a prompt whose KV cache is there already."""

    def __init__(self, cache: PromptCache, disk: DiskCache | None = None) -> None:
        self._cache = cache
        self._disk = disk
        self._read: tuple[Stored, Future[list[Any] | None]] | None = None

    def known(self, tokens: list[int], generator: BatchGenerator) -> int:
        """The length of what ``take`` would give; nothing is copied, so it may be asked in every step."""
        kept, row = self._cache.known(tokens), _longest_row(tokens, generator)
        return row.common if row and row.common >= kept + _WORTH_TOKENS else kept

    def take(self, tokens: list[int], generator: BatchGenerator) -> tuple[list[Any] | None, int]:
        """Layers that hold the beginning of ``tokens``, and its length: at least the last token is left to read."""
        row = _longest_row(tokens, generator)
        if row and row.common >= self._cache.known(tokens) + _WORTH_TOKENS:
            return row.copy(), row.common
        return self._cache.take(tokens)

    def is_coming(self, tokens: list[int], known: int, running: Iterable[Live]) -> bool:
        """Whether more of ``tokens`` than ``known`` is on its way: ask again in the next step.

        From the disk, or from a prompt that is being read: two agents' first requests share a long system prompt, and
        the second waits for it instead of reading it again.
        """
        if self._disk and self._comes_from(self._disk, tokens, known):
            return True
        for live in running:
            read = len(live.prompt.tokens) - live.unread
            if live.unread and min(common_prefix(live.prompt.tokens[:-1], tokens), len(tokens) - 1) >= (
                max(read, known) + _WORTH_TOKENS
            ):
                return True
        return False

    def look(self) -> None:
        """Wait a little for the disk, when nothing else is to be done."""
        if self._read:
            wait([self._read[1]], _LOOK_S)

    def put_away(self) -> bool:
        """Begin to write one conversation to the disk, the newest first; whether there may be more to do."""
        if self._disk is None or self._disk.writing:
            return self._disk is not None
        for tokens, layers in self._cache.newest_first():
            if can_be_stored(layers) and self._disk.wants(tokens, layers):
                self._disk.write(tokens, layers)
                return True
        return False

    def close(self) -> None:
        if self._disk:
            self._disk.close()

    def _comes_from(self, disk: DiskCache, tokens: list[int], known: int) -> bool:
        if self._read is None:
            stored = disk.find(tokens, known, self._cache.limit_bytes)
            if stored is None:
                return False
            self._read = stored, disk.read(stored)
        stored, read = self._read
        if read.done():
            self._read = None
            if tensors := read.result():
                self._cache.put(stored.tokens, layers_of(tensors))
        return True


@dataclass(frozen=True, slots=True)
class Row:
    """The first ``common`` tokens of one row of a running batch."""

    common: int
    layers: list[Any]
    index: int
    uid: int

    def copy(self) -> list[Any]:
        layers = [_beginning(layer, self.index, self.common) for layer in self.layers]
        # At once: an unevaluated copy holds the whole batch it is cut from.
        mx.eval([layer.state for layer in layers])
        return Layers(layers, self.uid)


def row_of(generator: BatchGenerator, uid: int, length: int) -> Row:
    """The first ``length`` tokens of the running row ``uid``."""
    for batch in _batches(generator):
        if uid in batch.uids:
            return Row(length, batch.prompt_cache, batch.uids.index(uid), uid)
    raise LookupError(f"no row {uid} runs")


def _longest_row(tokens: list[int], generator: BatchGenerator) -> Row | None:
    """The running row that has most of ``tokens`` in common with it."""
    best = None
    for batch in _batches(generator):
        if not _are_plain(batch.prompt_cache):
            continue
        for index, known in enumerate(batch.tokens):
            common = min(common_prefix(known, tokens), len(tokens) - 1)
            if common > (best.common if best else 0):
                best = Row(common, batch.prompt_cache, index, batch.uids[index])
    return best


def _batches(generator: BatchGenerator) -> tuple[Any, ...]:
    return generator._generation_batch, generator._prompt_batch  # noqa: SLF001 - mlx-lm is pinned


def _are_plain(layers: list[Any]) -> bool:
    """Sliding windows and recurrent states can't be cut off at any token."""
    return bool(layers) and all(type(layer) is BatchKVCache for layer in leaves(layers))


def _beginning(layer: Any, row: int, length: int) -> Any:
    view = copy.copy(layer)
    view._idx = int(layer.left_padding[row].item()) + length  # noqa: SLF001 - as above; extract() copies up to here
    return view.extract(row)
