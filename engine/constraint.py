"""Keeps an answer within its grammar: a logits processor, fed with each chosen token before the next step begins.

mlx-lm queues a step before it knows the last step's tokens. A processor that read its tokens itself would wait, in
the middle of the step, for all that is queued: so the engine hands them over between two steps (``advance``), and
the mask of a step is computed while the device already runs the model.
"""

from collections import deque
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Thinking:
    """The marks around a model's thoughts as tokens, and whether the prompt has opened them already."""

    start: tuple[int, ...]
    end: tuple[int, ...]
    open: bool


class Constraint:
    """The grammar of one answer. What the model thinks before it answers is free.

    ``failure`` says why the grammar could not be followed any further; after that only the end of text is allowed. It
    never raises, for mlx-lm drops a request whose processor does.
    """

    def __init__(self, matcher: LLMatcher, ends: frozenset[int], thinking: Thinking | None) -> None:
        self._matcher = matcher
        self._ends = ends
        self._thinking = thinking
        self._free = thinking is not None and thinking.open
        self._begun = False
        self._served = False
        self._recent: deque[int] = deque(maxlen=len(thinking.end) if thinking else 0)
        self.failure = ""

    def advance(self, token: int) -> None:
        """The token that was chosen under the last mask; calls without a mask in between change nothing."""
        if not self._served:
            return
        self._served = False
        thinking = self._thinking
        if thinking is not None and self._free:
            self._recent.append(token)
            self._free = tuple(self._recent) != thinking.end
        elif thinking is not None and not self._begun and thinking.start == (token,):
            self._free = True
        elif token not in self._ends and not self._matcher.consume_token(token):
            self.failure = self.failure or self._matcher.get_error() or f"token {token} was not allowed"
        self._begun = True

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
        if not self.failure:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            known = np.unpackbits(bits, bitorder="little", count=min(size, 8 * len(bits)))
            allowed[: len(known)] = known
            if self._matcher.is_error():
                self.failure = self._matcher.get_error()
        if not self._begun and self._thinking is not None and len(self._thinking.start) == 1:
            allowed[self._thinking.start[0]] = 1
        if self.failure or not allowed.any():
            allowed[:] = 0
            allowed[[token for token in self._ends if token < size]] = 1
        return allowed.view(np.bool_)
