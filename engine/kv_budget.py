"""Which requests may share the memory for KV caches: the claims are kept here, nothing is read from MLX.

mlx-lm pads every sequence of a batch to the longest one, so ``n`` requests hold ``n`` times the longest claim,
however short the others are. Claims bound what is allocated, not what is being copied: while sequences join, leave
or pass an allocation step, old and new arrays live side by side for a moment.
"""

import sys
from bisect import bisect_right
from dataclasses import dataclass

STEP_TOKENS = 256
"""What mlx-lm's caches grow by: up to one step less one token is allocated beyond the longest sequence."""

# What an answer without max_tokens is promised at first, and the least that is worth beginning where no more fits.
FIRST_TOKENS = 1024
LEAST_TOKENS = 256
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class KvCost:
    """Bytes that one sequence's KV cache takes.

    ``growing`` holds pairs of bytes per token and tokens kept at most, None where all are kept; ``fixed_bytes`` are
    taken whatever the length.
    """

    growing: tuple[tuple[int, int | None], ...]
    fixed_bytes: int = 0

    def sequence_bytes(self, tokens: int) -> int:
        kept = (size * (tokens if most is None else min(tokens, most)) for size, most in self.growing)
        return self.fixed_bytes + sum(kept)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks for, in tokens; ``open_ended`` is one without max_tokens, up to the end of the context."""

    prompt: int
    answer: int
    open_ended: bool


@dataclass(slots=True)
class _Claim:
    wish: Wish
    answer: int


class KvBudget:
    """The claims of the running requests, whose sum never passes the limit.

    A wish with max_tokens claims all of it at once. An open-ended one claims ``FIRST_TOKENS`` of answer (or what is
    left of the context, or all that ever fits beside its prompt) and grows while there is room.
    """

    def __init__(self, limit_bytes: int, cost: KvCost, *, context: int, chunk: int) -> None:
        """``limit_bytes`` 0 is no limit; ``chunk`` is how many tokens of a prompt are read at once."""
        self._limit = limit_bytes or sys.maxsize
        self._cost = cost
        self._context = context
        self._chunk = chunk
        self._claims: dict[int, _Claim] = {}

    @property
    def claimed_bytes(self) -> int:
        return self._batch_bytes(len(self._claims), self._longest())

    @property
    def spare_bytes(self) -> int:
        """What no running request claims: stored prompt caches may take it."""
        return self._limit - self.claimed_bytes

    def never(self, wish: Wish) -> str | None:
        """Why this wish can't be granted even alone, in a sentence with the figures; None where it can."""
        most = self._most_answer(wish.prompt)
        least = min(LEAST_TOKENS, wish.answer) if wish.open_ended else wish.answer
        if least <= most:
            return None
        needed = self._batch_bytes(1, self._length(wish.prompt, least))
        cure = f"With this prompt {most} tokens of answer fit: lower max_tokens, shorten" if most > 0 else "Shorten"
        return (
            f"The prompt of {wish.prompt} tokens and an answer of {least} need {_mib(needed)} of KV cache; this model "
            f"was granted {_mib(self._limit)}. {cure} the messages, or raise engine.kv_budget."
        )

    def fits(self, wish: Wish) -> bool:
        """Is there room beside the running requests now? Stored prompt caches don't count, for they can leave."""
        return self._bytes_with(wish) <= self._limit

    def waited(self, wish: Wish) -> str:
        """The sentence for a wish that has waited in vain."""
        return (
            f"With this request {len(self._claims) + 1} answers would need {_mib(self._bytes_with(wish))} of KV cache "
            f"(each takes as much as the longest) and this model was granted {_mib(self._limit)}. It has waited long "
            "enough: try again later, lower max_tokens, shorten the messages, or raise engine.kv_budget."
        )

    def join(self, key: int, wish: Wish) -> int:
        """Claim what the wish begins with, which must fit; returns the tokens of answer granted."""
        self._claims[key] = claim = _Claim(wish, self._first(wish))
        return claim.answer

    def grow(self, key: int) -> int:
        """One step more for an open-ended answer, where there is room; returns the tokens of answer granted."""
        claim = self._claims[key]
        more = min(claim.answer + STEP_TOKENS, claim.wish.answer)
        length = max(self._longest(), self._length(claim.wish.prompt, more))
        if self._batch_bytes(len(self._claims), length) <= self._limit:
            claim.answer = more
        return claim.answer

    def leave(self, key: int) -> None:
        del self._claims[key]

    def _first(self, wish: Wish) -> int:
        if not wish.open_ended:
            return wish.answer
        return min(FIRST_TOKENS, wish.answer, self._most_answer(wish.prompt))

    def _most_answer(self, prompt: int) -> int:
        """The longest answer that fits beside this prompt when it runs alone; below 0 where none does."""
        answers = range(self._context + 1)
        return bisect_right(answers, self._limit, key=lambda n: self._batch_bytes(1, self._length(prompt, n))) - 1

    def _bytes_with(self, wish: Wish) -> int:
        length = max(self._longest(), self._length(wish.prompt, self._first(wish)))
        return self._batch_bytes(len(self._claims) + 1, length)

    def _longest(self) -> int:
        return max((self._length(claim.wish.prompt, claim.answer) for claim in self._claims.values()), default=0)

    def _length(self, prompt: int, answer: int) -> int:
        # While prompts of a batch are read side by side, one that ends in mid-chunk is padded to the whole chunk.
        return prompt + max(answer, self._chunk)

    def _batch_bytes(self, requests: int, length: int) -> int:
        return requests * self._cost.sequence_bytes(length + STEP_TOKENS)


def _mib(size: int) -> str:
    return f"{size / _MIB:,.1f} MiB"
