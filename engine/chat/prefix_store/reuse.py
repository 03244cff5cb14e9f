"""What a prompt need not read: finds its longest known beginning in running rows, in memory and on disk."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import mlx.core as mx
from mlx_lm.generate import BatchGenerator

from plimsoll.engine.chat.prefix_store.pieces import Row, assemble
from plimsoll.engine.chat.prefix_store.prefix_store import Found, PrefixStore
from plimsoll.engine.chat.prefix_store.tree import common_prefix

if TYPE_CHECKING:
    from plimsoll.engine.chat.prefix_store.disk_store import DiskStore

# A shorter common beginning is read faster than it is copied.
WORTH_TOKENS = 16

Source = Literal["", "running row", "memory", "disk"]


class Reading(Protocol):
    """A request whose prompt may be read just now."""

    @property
    def tokens(self) -> list[int]:
        """Its prompt."""

    @property
    def unread(self) -> int:
        """How many of the tokens are left to read."""

    @property
    def marks(self) -> tuple[int, ...]:
        """Where snapshots will be taken, if the model needs them."""


@dataclass(frozen=True, slots=True)
class Reused:
    """``caches`` hold the first ``length`` tokens of a prompt; None where nothing is known.

    The prompt left the closest known conversation after ``left_at`` tokens. In a group the other ranks make the same
    caches out of the pieces with these ``numbers`` and of ``snapshot``, or of the running row ``row``.
    """

    caches: list[Any] | None = None
    length: int = 0
    source: Source = ""
    left_at: int = 0
    numbers: tuple[int, ...] = ()
    snapshot: int | None = None
    row: int | None = None


class PromptReuse:
    """The step thread's; ``disk`` is where pieces are kept that outlive the process."""

    def __init__(self, store: PrefixStore, disk: "DiskStore | None" = None) -> None:
        self.store = store
        self.disk = disk
        self._last: tuple[list[int], int, Found] | None = None
        self._from_disk: set[int] = set()

    def known(self, tokens: list[int], generator: BatchGenerator) -> int:
        """The length of what ``take`` would give; nothing is copied, so it may be asked in every step."""
        held = self._find(tokens).held.length
        row = self._longest_row(tokens, generator)
        return row.common if row and row.common >= held + WORTH_TOKENS else held

    def take(self, tokens: list[int], generator: BatchGenerator) -> Reused:
        """Caches that hold the beginning of ``tokens``: at least the last token is left to read."""
        found = self._find(tokens)
        row = self._longest_row(tokens, generator)
        left_at = max(found.common, row.common if row else 0)
        if row and row.common >= found.held.length + WORTH_TOKENS:
            caches = copy_row(self.store, row)
            return Reused(caches, row.common, "running row", left_at, row=row.uid)
        beginning = found.held
        if not beginning.length:
            return Reused(left_at=left_at)
        numbers = tuple(block.number for block in beginning.blocks)
        snapshot = beginning.snapshot.number if beginning.snapshot else None
        source: Source = "disk" if self._from_disk.intersection(numbers) else "memory"
        self._from_disk.difference_update(numbers)
        return Reused(self.store.take(beginning), beginning.length, source, left_at, numbers, snapshot)

    def is_coming(self, tokens: list[int], known: int, running: Iterable[Reading]) -> bool:
        """Whether more of ``tokens`` than ``known`` is on its way: ask again in the next step.

        From the disk, or from a prompt that is being read: two agents' first requests share a long system prompt, and
        the second waits for it instead of reading it again.
        """
        if self.disk and self._comes_from(self.disk, tokens, known):
            return True
        for live in running:
            if not live.unread:
                continue
            common = min(common_prefix(live.tokens[:-1], tokens), len(tokens) - 1)
            if self.store.needs_states:
                common = max((mark for mark in live.marks if mark <= common), default=0)
            if common >= max(len(live.tokens) - live.unread, known) + WORTH_TOKENS:
                return True
        return False

    def _find(self, tokens: list[int]) -> Found:
        """Asked in every step while a request waits: what was found stands until the store changes."""
        if self._last and self._last[0] is tokens and self._last[1] == self.store.version:
            return self._last[2]
        found = self.store.find(tokens)
        self._last = tokens, self.store.version, found
        return found

    def _comes_from(self, disk: "DiskStore", tokens: list[int], known: int) -> bool:
        if not disk.look(self.store):
            return True
        if disk.reading:
            self._from_disk |= disk.take_in(self.store)
        if disk.reading:
            return True
        found = self._find(tokens)
        if found.stored.length < max(known, found.held.length) + WORTH_TOKENS:
            return False
        return disk.read(found.stored, self.store.budget_bytes)

    def _longest_row(self, tokens: list[int], generator: BatchGenerator) -> "RunningRow | None":
        """The running row with most of ``tokens`` in common; none where caches can't be cut at any token."""
        if self.store.needs_states:
            return None
        best = None
        for batch in generator.batches:
            for index, known in enumerate(batch.tokens):
                common = min(common_prefix(known, tokens), len(tokens) - 1)
                if common > (best.common if best else 0):
                    best = RunningRow(common, batch.prompt_cache, index, batch.uids[index])
        return best


@dataclass(frozen=True, slots=True)
class RunningRow:
    """The first ``common`` tokens of one row of a running batch."""

    common: int
    caches: list[Any]
    index: int
    uid: int

    @property
    def row(self) -> Row:
        return Row(self.caches, self.index)


def copy_row(store: PrefixStore, row: RunningRow) -> list[Any]:
    """New caches with the beginning of a running row."""
    cut = row.row.cut(0, row.common)
    # At once: an unevaluated copy holds the whole batch it is cut from.
    mx.eval([array for array in cut if array is not None])
    return assemble(store.empty_caches(), [cut], row.common, [])


def running_row(generator: BatchGenerator, uid: int) -> RunningRow | None:
    """The row ``uid``, if it runs."""
    for batch in generator.batches:
        if uid in batch.uids:
            return RunningRow(0, batch.prompt_cache, batch.uids.index(uid), uid)
    return None


# Tokens before and behind the one where a prompt leaves what is known.
_AROUND_TOKENS = 8


def text_around(tokenizer: Any, tokens: list[int], at: int) -> str:
    """What a prompt says where it leaves what is known."""
    if not 0 < at < len(tokens):
        return ""
    return str(tokenizer.decode(tokens[max(0, at - _AROUND_TOKENS) : at + _AROUND_TOKENS]))
