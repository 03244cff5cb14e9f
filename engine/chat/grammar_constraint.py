"""Keeps an answer within its grammar: a logits processor, fed with each chosen token before the next step begins.

mlx-lm queues a step before it knows the last step's tokens. A processor that read its tokens itself would wait, in
the middle of the step, for all that is queued: so the engine hands them over between two steps (``advance``), and
the mask of a step is computed while the device already runs the model.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

_MOST_END = 24  # tokens in which the mark that ends thoughts is looked for


@dataclass(frozen=True, slots=True)
class Thinking:
    """The marks around a model's thoughts as tokens, and whether the prompt has opened them already.

    An ``end`` of several tokens is looked for in the text that ``decode`` makes of the newest ones, for a model may
    write it with others.
    """

    start: tuple[int, ...]
    end: tuple[int, ...]
    open: bool
    end_text: str = ""
    decode: Callable[[list[int]], str] | None = None


class Thoughts:
    """Follows an answer's tokens into its thoughts and out of them."""

    def __init__(self, thinking: Thinking) -> None:
        self._thinking = thinking
        self._recent: deque[int] = deque(maxlen=max(_MOST_END, len(thinking.end)))
        self._opening = 0  # how many tokens of the start were seen; -1 where none can follow any more
        self.inside = thinking.open

    @property
    def next_of_start(self) -> int | None:
        """The token that would open thoughts, or go on opening them."""
        may = not self.inside and 0 <= self._opening < len(self._thinking.start)
        return self._thinking.start[self._opening] if may else None

    def add(self, token: int) -> None:
        if not self.inside:
            matches = token == self.next_of_start
            self._opening = self._opening + 1 if matches else -1
            self.inside = matches and self._opening == len(self._thinking.start)
            return
        self._recent.append(token)
        if self._ended():
            self.inside, self._opening = False, -1

    def _ended(self) -> bool:
        end, decode = self._thinking.end, self._thinking.decode
        if tuple(self._recent)[-len(end) :] == end:
            return True
        return len(end) > 1 and decode is not None and self._thinking.end_text in decode(list(self._recent))


class Constraint:
    """The grammar of one answer. What the model thinks before it answers is free.

    ``failure`` says why the grammar could not be followed any further; after that only the end of text is allowed. It
    never raises, for mlx-lm drops a request whose processor does.
    """

    def __init__(self, matcher: LLMatcher, ends: frozenset[int], thinking: Thinking | None) -> None:
        self._matcher = matcher
        self._ends = ends
        self._thoughts = Thoughts(thinking) if thinking else None
        self._served = False
        self._followed = True  # whether the grammar allows what was chosen so far
        self.failure = ""

    @property
    def _free(self) -> bool:
        return self._thoughts is not None and self._thoughts.inside

    def advance(self, token: int) -> None:
        """The token that was chosen under the last mask; calls without a mask in between change nothing."""
        if self._served:
            self.follow(token)

    def follow(self, token: int) -> None:
        """The answer goes on with this token."""
        self._served = False
        if self._thoughts is not None:
            inside, opens = self._thoughts.inside, token == self._thoughts.next_of_start
            self._thoughts.add(token)
            if inside:
                return
            if opens:
                # Until the start is complete the token may be the grammar's as well as the start's.
                self._followed = self._followed and not self._free and self._matcher.try_consume_tokens([token]) == 1
                if self._free:
                    self._matcher.reset()
                    self._followed = True
                return
        if token in self._ends:
            return
        if not self._followed or not self._matcher.consume_token(token):
            self.failure = self.failure or self._matcher.get_error() or f"token {token} was not allowed"

    def __call__(self, _tokens: mx.array, logits: mx.array) -> mx.array:
        self._served = True
        if self._free:
            return logits
        # Lets the device begin with the model while the mask is computed here.
        mx.async_eval(logits)  # type: ignore[no-untyped-call]  # its stub has no types
        mask = mx.array(self._mask(logits.shape[-1]))
        return mx.where(mask, logits, mx.array(-mx.inf, logits.dtype))

    def _mask(self, size: int) -> NDArray[np.bool_]:
        allowed = np.zeros(size, np.uint8)
        if not self.failure and self._followed:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            known = np.unpackbits(bits, bitorder="little", count=min(size, 8 * len(bits)))
            allowed[: len(known)] = known
            if self._matcher.is_error():
                self.failure = self._matcher.get_error()
        if self._thoughts is not None and (opening := self._thoughts.next_of_start) is not None:
            allowed[opening] = 1
        if self.failure or not allowed.any():
            allowed[:] = 0
            allowed[[token for token in self._ends if token < size]] = 1
        return allowed.view(np.bool_)
