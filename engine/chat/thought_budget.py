"""Ends a model's thoughts where they have had their share of tokens: a logits processor, fed as a grammar is."""

import mlx.core as mx

from plimsoll.engine.chat.grammar_constraint import Thinking, Thoughts


class ThoughtBudget:
    """After ``most`` tokens of thoughts the mark that ends them is the only thing that may come."""

    def __init__(self, thinking: Thinking, most: int) -> None:
        self._thoughts = Thoughts(thinking)
        self._end = thinking.end
        self._left = most
        self._closing = 0  # how many tokens of the end were forced
        self._served = False

    def advance(self, token: int) -> None:
        """The token that was chosen; calls without a mask in between change nothing."""
        if self._served:
            self.follow(token)

    def follow(self, token: int) -> None:
        """The answer goes on with this token."""
        self._served = False
        if self._thoughts.inside:
            if self._left > 0:
                self._left -= 1
            else:
                self._closing += 1
        self._thoughts.add(token)

    def __call__(self, _tokens: mx.array, logits: mx.array) -> mx.array:
        self._served = True
        if not self._thoughts.inside or self._left > 0:
            return logits
        forced = self._end[min(self._closing, len(self._end) - 1)]
        return mx.where(mx.arange(logits.shape[-1]) == forced, logits, mx.array(-mx.inf, logits.dtype))
