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
    """What a request asks for, in tokens: ``answer`` is an upper bound. It begins with room for ``first`` of them.

    A ``scored`` prompt takes room for logits while it is read.
    """

    prompt: int
    answer: int
    first: int = STEP_TOKENS
    scored: bool = False


@dataclass(slots=True)
class _Claim:
    wish: Wish
    answer: int
    reads: bool = True


class WorkingMemory:
    """What reading a chunk of a prompt takes besides the KV caches, measured: attention scores, activations, copies.

    It grows with the tokens that the caches hold, so it is a line through the highest of what was measured in short and
    in long contexts; beyond the longest one it is expected to go on like that.
    """

    def __init__(self) -> None:
        self._peaks: dict[int, int] = {}  # the highest, by the power of two that the tokens stay below

    def note(self, tokens: int, peak_bytes: int) -> None:
        size = tokens.bit_length()
        self._peaks[size] = max(self._peaks.get(size, 0), peak_bytes)

    def bytes_at(self, tokens: int) -> int:
        """What is expected where the caches hold so many tokens, 0 where nothing was measured."""
        if not self._peaks:
            return 0
        size, longest = tokens.bit_length(), max(self._peaks)
        if size <= longest:
            return max(
                (peak for known, peak in self._peaks.items() if known <= size), default=min(self._peaks.values())
            )
        shortest = min(self._peaks)
        first, last = self._peaks[shortest], max(self._peaks.values())
        rise = max(0, last - first) / max(1, (1 << longest) - (1 << shortest))
        return last + int(rise * (tokens - (1 << longest - 1)))


class KvBudget:
    """The claims of the running requests, whose sum does not exceed the room, unless the room was made smaller.

    A request claims its prompt and one step of its answer, and grows by such steps while there is room.
    """

    def __init__(
        self,
        room_bytes: int,
        cost: KvCost,
        *,
        context: int,
        chunk: int,
        most_bytes: int = 0,
        scoring_bytes: int = 0,
    ) -> None:
        """``room_bytes`` 0 is no limit; the room never grows above ``most_bytes``, or at all if that is 0.

        ``chunk`` is how many tokens of a prompt are read at once, ``scoring_bytes`` what it takes to score them: one
        prompt is scored at a time.
        """
        self.room_bytes = room_bytes or sys.maxsize
        self.most_bytes = max(most_bytes, self.room_bytes)
        self.working = WorkingMemory()
        self.scoring_bytes = scoring_bytes
        self._cost = cost
        self._context = context
        self._chunk = chunk
        self._claims: dict[int, _Claim] = {}

    @property
    def claimed_bytes(self) -> int:
        longest = self._longest()
        return self._batch_bytes(len(self._claims), longest) + self._working_bytes(longest) + self._scoring_bytes()

    @property
    def longest(self) -> int:
        """The most tokens of prompt and answer that ever fit, alone in the room at its largest."""
        lengths = range(self._context + 1)
        return bisect_right(lengths, self.most_bytes, key=self._alone_bytes) - 1

    @property
    def spare_bytes(self) -> int:
        """What no running request claims: stored prompt caches may take it."""
        return max(0, self.room_bytes - self.claimed_bytes)

    def lease(self, room_bytes: int, most_bytes: int) -> None:
        """The room from now on, and what it may grow to."""
        self.room_bytes, self.most_bytes = room_bytes, max(room_bytes, most_bytes)

    def never(self, wish: Wish) -> str | None:
        """Why this wish can't be granted even alone, in a sentence with the figures; None where it can."""
        needed = self._alone_bytes(self._length(wish.prompt, self._first(wish))) + wish.scored * self.scoring_bytes
        if needed <= self.most_bytes:
            return None
        longest = self.longest
        most = max(0, longest - max(self._first(wish), self._chunk))
        return (
            f"prompt is too long: {wish.prompt} tokens > {most} maximum. Here this model's maximum context length is "
            f"{longest} tokens: with a first step of its answer the prompt needs {_mib(needed)} of KV cache, which may "
            f"take {_mib(self.most_bytes)}. Shorten the messages, or raise engine.kv_budget if it is set."
        )

    def fits(self, wish: Wish) -> bool:
        """Is there room beside the running requests now? Stored prompt caches don't count, for they can leave."""
        return self.needed_bytes(wish) <= self.room_bytes

    def denied(self, wish: Wish) -> str:
        """The sentence for a wish that does not fit though nothing else runs."""
        return (
            f"This request needs {_mib(self.needed_bytes(wish))} of KV cache and {_mib(self.room_bytes)} are left for "
            "this model; nothing else runs that could free memory. Try again later, shorten the messages, or end other "
            "programs."
        )

    def needed_bytes(self, wish: Wish) -> int:
        """The room with which the wish could join the running requests."""
        length = max(self._longest(), self._length(wish.prompt, self._first(wish)))
        scoring = self.scoring_bytes if wish.scored else self._scoring_bytes()
        return self._batch_bytes(len(self._claims) + 1, length) + self.working.bytes_at(length) + scoring

    def growth_bytes(self, key: int) -> int:
        """The room with which the answer of a running request could grow by one step."""
        claim = self._claims[key]
        more = min(claim.answer + STEP_TOKENS, claim.wish.answer)
        length = max(self._longest(), self._length(claim.wish.prompt, more))
        return self._batch_bytes(len(self._claims), length) + self._working_bytes(length) + self._scoring_bytes()

    def join(self, key: int, wish: Wish) -> int:
        """Claim what the wish begins with, which must fit; returns the tokens of answer granted."""
        self._claims[key] = claim = _Claim(wish, self._first(wish))
        return claim.answer

    def grow(self, key: int) -> int:
        """One step more for an answer, if there is room; returns the tokens of answer granted."""
        claim = self._claims[key]
        if self.growth_bytes(key) <= self.room_bytes:
            claim.answer = min(claim.answer + STEP_TOKENS, claim.wish.answer)
        return claim.answer

    def has_read(self, key: int) -> None:
        """The request's prompt has been read."""
        self._claims[key].reads = False

    def leave(self, key: int) -> None:
        """Give the claim back, if it was not before."""
        self._claims.pop(key, None)

    def _first(self, wish: Wish) -> int:
        return min(wish.first, wish.answer)

    def _longest(self) -> int:
        return max((self._length(claim.wish.prompt, claim.answer) for claim in self._claims.values()), default=0)

    def _length(self, prompt: int, answer: int) -> int:
        # While prompts of a batch are read side by side, one that ends in mid-chunk is padded to the whole chunk.
        return prompt + max(answer, self._chunk)

    def _batch_bytes(self, requests: int, length: int) -> int:
        return requests * self._cost.sequence_bytes(length + STEP_TOKENS)

    def _alone_bytes(self, length: int) -> int:
        return self._batch_bytes(1, length) + self.working.bytes_at(length)

    def _working_bytes(self, length: int) -> int:
        """Answers alone take next to nothing beside their caches."""
        return self.working.bytes_at(length) if any(claim.reads for claim in self._claims.values()) else 0

    def _scoring_bytes(self) -> int:
        return self.scoring_bytes if any(claim.reads and claim.wish.scored for claim in self._claims.values()) else 0


def _mib(size: int) -> str:
    return f"{size / _MIB:,.1f} MiB"
