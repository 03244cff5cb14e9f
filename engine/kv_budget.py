"""Which requests may share the memory for KV caches: claims are kept here, and nothing is read from MLX.

mlx-lm pads every sequence of a batch to the longest one, so ``n`` requests hold ``n`` times the longest claim,
however short the others are. Claims are upper bounds of what is allocated, never of what is being copied: while
sequences join or leave, a layer's old and new arrays live side by side for a moment.
"""

import sys
from bisect import bisect_right
from dataclasses import dataclass

STEP_TOKENS = 256
"""What mlx-lm's caches grow by: up to one step less one token is allocated beyond the longest sequence."""

# What a request without max_tokens is promised, and what it gets at least where memory never allows more.
_FIRST_TOKENS = 1024
_LEAST_TOKENS = 256
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class KvCost:
    """Bytes that one sequence's KV cache takes.

    ``growing`` holds (bytes per token, tokens at most), the latter None where the cache keeps them all;
    ``fixed_bytes`` are taken whatever the length is.
    """

    growing: tuple[tuple[int, int | None], ...]
    fixed_bytes: int = 0

    def sequence_bytes(self, tokens: int) -> int:
        kept = (size * (tokens if most is None else min(tokens, most)) for size, most in self.growing)
        return self.fixed_bytes + sum(kept)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks for, in tokens; ``open_ended`` where the client gave no max_tokens."""

    prompt: int
    answer: int
    open_ended: bool


@dataclass(slots=True)
class _Claim:
    wish: Wish
    answer: int


class KvBudget:
    """The claims of the running requests; together with what ``spare_bytes`` allows they stay within the limit.

    A wish with max_tokens claims all of it at once. An open-ended one claims 1024 tokens of answer (or what is left of
    the context, or all that can ever fit) and ``grow``s while there is room; where there is none its answer ends with
    ``length``.
    """

    def __init__(self, limit_bytes: int, cost: KvCost, chunk: int) -> None:
        """``limit_bytes`` 0 is no limit; ``chunk`` is how many tokens of a prompt are read at once."""
        self._limit = limit_bytes or sys.maxsize
        self._cost = cost
        self._chunk = chunk
        self._claims: dict[int, _Claim] = {}

    @property
    def claimed_bytes(self) -> int:
        return self._batch_bytes(len(self._claims), self._longest())

    @property
    def spare_bytes(self) -> int:
        """What no running request claims: stored prompt caches may take it."""
        return self._limit - self.claimed_bytes

    def refusal(self, wish: Wish) -> str | None:
        """Why this wish can never be granted, in a sentence with the figures; None where it can."""
        most = self._most_answer(wish.prompt)
        enough = min(_LEAST_TOKENS, wish.answer) if wish.open_ended else wish.answer
        if enough <= most:
            return None
        needed = self._batch_bytes(1, self._length(wish.prompt, enough))
        what = f"The prompt of {wish.prompt} tokens and an answer of {enough} need {_mib(needed)} of KV cache"
        if most > 0:
            cure = f"With this prompt {most} tokens of answer fit: lower max_tokens, shorten the messages"
        else:
            cure = "Shorten the messages"
        return f"{what}, and this model was granted {_mib(self._limit)}. {cure}, or raise engine.kv_budget."

    def fits(self, wish: Wish) -> bool:
        """Is there room beside the running requests now? Stored prompt caches don't count: they can leave."""
        length = max(self._longest(), self._length(wish.prompt, self._first(wish)))
        return self._batch_bytes(len(self._claims) + 1, length) <= self._limit

    def waits(self, wish: Wish) -> str:
        """The sentence for a wish that has waited in vain."""
        longest = max(self._longest(), self._length(wish.prompt, self._first(wish)))
        needed = self._batch_bytes(len(self._claims) + 1, longest)
        return (
            f"With this request {len(self._claims) + 1} answers would need {_mib(needed)} of KV cache (each is padded to "
            f"the longest), and this model was granted {_mib(self._limit)}. Try again later, lower max_tokens, shorten "
            "the messages, or raise engine.kv_budget."
        )

    def join(self, key: int, wish: Wish) -> int:
        """Claim what the wish begins with; returns the tokens of answer granted. Ask ``fits`` before."""
        self._claims[key] = claim = _Claim(wish, self._first(wish))
        return claim.answer

    def grow(self, key: int) -> int:
        """One step more for an open-ended answer, where there is room; returns the tokens of answer granted."""
        claim = self._claims[key]
        if claim.wish.open_ended:
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
        return min(_FIRST_TOKENS, wish.answer, self._most_answer(wish.prompt))

    def _most_answer(self, prompt: int) -> int:
        """The longest answer that fits beside this prompt when it runs alone."""
        if self._limit == sys.maxsize:
            return sys.maxsize
        # bytes never fall with the length, so search for where they pass the limit
        high = 1
        while self._batch_bytes(1, self._length(prompt, high)) <= self._limit:
            if high > _ENDLESS:
                return sys.maxsize
            high *= 2
        return bisect_right(range(high), self._limit, key=lambda n: self._batch_bytes(1, self._length(prompt, n))) - 1

    def _longest(self) -> int:
        return max((self._length(claim.wish.prompt, claim.answer) for claim in self._claims.values()), default=0)

    def _length(self, prompt: int, answer: int) -> int:
        # A prompt that ends in mid-chunk is padded to the chunk, for a moment only: its answer takes the place.
        return prompt + max(answer, self._chunk)

    def _batch_bytes(self, requests: int, length: int) -> int:
        return requests * self._cost.sequence_bytes(length + STEP_TOKENS)


# Tokens that no context reaches: models whose caches stop growing fit any length.
_ENDLESS = 1 << 32


def _mib(size: int) -> str:
    return f"{size / _MIB:,.1f} MiB"
