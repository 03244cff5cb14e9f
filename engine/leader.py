"""The generator of a group's first rank: whatever it does to its rows, the other ranks are told right before."""

from typing import Any

from plimsoll.engine import row_ops as op
from plimsoll.engine.generator import Generator
from plimsoll.engine.layers import Layers
from plimsoll.engine.rank import Rank


class LeadingGenerator(Generator):
    """Rows that it hands out carry their number, by which the others know them."""

    def __init__(self, rank: Rank, *args: Any, **options: Any) -> None:
        self._rank = rank
        super().__init__(*args, **options)

    def insert(self, prompts: list[list[int]], *args: Any, caches: list[Any], **options: Any) -> list[int]:
        for tokens, layers, known in zip(prompts, caches, options["all_tokens"], strict=True):
            self._rank.tell(op.Insert(len(tokens), len(known), layers.uid if layers else 0))
        uids: list[int] = super().insert(prompts, *args, caches=caches, **options)
        return uids

    def read(self) -> list[Any]:
        self._rank.tell(op.Read(self.prefill_step_size))
        return super().read()

    def decode(self) -> list[Any]:
        if not len(self._generation_batch):
            return []
        self._rank.tell(op.Decode())
        decoded = super().decode()
        if ended := [one for one in decoded if one.finish_reason is not None]:
            self._rank.tell(op.Remove([one.uid for one in ended], keep=True))
        for one in ended:
            one.prompt_cache = Layers(one.prompt_cache, one.uid)
        return decoded

    def remove(self, uids: list[int], return_prompt_caches: bool = False) -> dict[int, Any]:
        self._rank.tell(op.Remove(uids, return_prompt_caches))
        kept = super().remove(uids, return_prompt_caches)
        return {uid: (Layers(layers, uid), tokens) for uid, (layers, tokens) in kept.items()}

    def settle(self) -> None:
        self._rank.tell(op.Settle())
        super().settle()

    def on_drop(self, layers: Layers) -> None:
        """The prompt cache keeps them no more."""
        self._rank.tell(op.Drop([layers.uid]))
