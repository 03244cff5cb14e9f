"""Log-probabilities of a prompt's own tokens, computed portion by portion while the prompt is read."""

import math
from typing import Any, cast

import mlx.core as mx

from plimsoll.engine.chat.sampling import Narrow, TokenLogprobs
from plimsoll.engine.protocol import TokenLogprob
from plimsoll.engine.row_guard import NoFiniteScore

# The logits of one portion take at most so much: 250 tokens of a vocabulary of 128,000 in float32.
_LOGITS_BYTES = 128 << 20
_FLOAT32 = 4
# Log-probabilities are made of so many rows of logits at a time, and ``_COPIES`` copies of these rows are alive.
_ROWS = 8
_COPIES = 4


def portion(vocab_size: int) -> int:
    """How many tokens of a prompt are read at once where they are scored."""
    return max(1, _LOGITS_BYTES // (_FLOAT32 * vocab_size))


def scoring_bytes(vocab_size: int, tokens: int) -> int:
    """What scoring takes at its peak, besides what reading so many tokens at once takes anyway."""
    return (tokens + _COPIES * _ROWS) * vocab_size * _FLOAT32


class PromptScores:
    """The scores of one prompt, ``told`` so far. The first token has none: its log-probability says nothing.

    They are the model's own, before penalties, bias and temperature, and ``top`` alternatives stand beside each token.
    """

    def __init__(self, tokens: list[int], top: int, logprobs: TokenLogprobs, narrow: Narrow) -> None:
        self.told: list[TokenLogprob] = []
        self._tokens = tokens
        self._top = top
        self._logprobs = logprobs
        self._narrow = narrow
        self.begin()

    def begin(self) -> None:
        """The prompt is read from its beginning."""
        self.told = [self._logprobs.told(self._tokens[0], 0.0, [])]

    def __call__(self, logits: mx.array) -> None:
        """Take the evaluated logits, (tokens, vocabulary), behind the tokens that were read next.

        Raises ``NoFiniteScore``.
        """
        for begin in range(0, logits.shape[0], _ROWS):
            self._add(self._narrow(logits[begin : begin + _ROWS]).astype(mx.float32))

    def _add(self, logits: mx.array) -> None:
        """A few rows. Their tokens are the next ones of the prompt."""
        at = len(self.told)
        tokens = self._tokens[at : at + logits.shape[0]]
        sums = mx.logsumexp(logits, axis=-1, keepdims=True)
        values = logits - sums
        wanted = mx.concatenate([mx.array(tokens)[:, None], self._best(values)], axis=-1)
        likely = mx.take_along_axis(values, wanted, axis=-1)
        mx.eval(sums, wanted, likely)
        if not all(math.isfinite(one) for one in cast("list[float]", sums.squeeze(-1).tolist())):
            raise NoFiniteScore
        ids, scores = cast("list[list[int]]", wanted.tolist()), cast("list[list[float]]", likely.tolist())
        for (token, *others), (score, *other_scores) in zip(ids, scores, strict=True):
            self.told.append(self._logprobs.told(token, score, zip(others, other_scores, strict=True)))

    def _best(self, values: mx.array) -> Any:
        """Ids of the likeliest tokens of each row, in any order."""
        top = min(self._top, values.shape[-1])
        if top == 1:
            return mx.argmax(values, axis=-1, keepdims=True).astype(mx.int32)
        return mx.argpartition(-values, kth=max(0, top - 1), axis=-1)[:, :top].astype(mx.int32)
