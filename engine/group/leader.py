"""The generator of a group's first rank: whatever it does to its rows, the other ranks are told right before."""

from collections.abc import Collection, Sequence
from typing import Any

import mlx.core as mx

from plimsoll.engine.chat.generator import Generator, segments
from plimsoll.engine.chat.prefix_store.reuse import Reused
from plimsoll.engine.group import group_ops
from plimsoll.engine.group.rank import Rank


class LeadingGenerator(Generator):
    """Also what its prefix store keeps and drops is told."""

    def __init__(self, rank: Rank, *args: Any, **options: Any) -> None:
        self._rank = rank
        super().__init__(*args, **options)

    def join(self, tokens: list[int], marks: Sequence[int], reused: Reused, **options: Any) -> list[int]:
        if reused.length >= len(tokens):
            # Told first and refused then, the row would have another number here than on the other ranks.
            raise ValueError("a row needs at least one token to read")
        lengths = [len(part) for part in segments(tokens, reused.length, marks)]
        begins = (reused.length, list(reused.numbers), reused.snapshot, reused.row)
        self._rank.tell(group_ops.Insert(lengths, *begins, scored=options.get("scorer") is not None))
        return super().join(tokens, marks, reused, **options)

    def read(self, uids: Collection[int]) -> list[Any]:
        self._rank.tell(group_ops.Read(self.prefill_step_size, list(uids)))
        return super().read(uids)

    def decode(self, room: int = 0) -> list[Any]:  # noqa: ARG002 - a group makes no drafts
        if not self.answering:
            return []
        self._rank.tell(group_ops.Decode())
        decoded = super().decode()
        if ended := [one for one in decoded if one.finish_reason is not None]:
            self._rank.tell(group_ops.Remove([one.uid for one in ended], keep=True))
        return decoded

    def remove(self, uids: list[int], return_prompt_caches: bool = False) -> dict[int, Any]:
        self._rank.tell(group_ops.Remove(uids, return_prompt_caches))
        kept: dict[int, Any] = super().remove(uids, return_prompt_caches)
        return kept

    def let_go(self, uid: int) -> None:
        self._rank.tell(group_ops.LetGo(uid))

    def settle(self, cut_out: Sequence[list[mx.array]] = ()) -> None:
        self._rank.tell(group_ops.Settle())
        super().settle(cut_out)

    # ---- the prefix store's mirror

    def keep(self, row: int, blocks: list[tuple[int, int, int]], snapshot: int | None, position: int) -> None:
        """Pieces of a row that the store keeps."""
        self._rank.tell(group_ops.Keep(row, blocks, snapshot, position))

    def drop(self, numbers: list[int]) -> None:
        """Pieces that the store keeps no more."""
        self._rank.tell(group_ops.Drop(numbers))
