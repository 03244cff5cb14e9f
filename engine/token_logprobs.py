"""Log-probabilities of chosen tokens and of the likeliest others."""

import math
from typing import Any

import mlx.core as mx
from mlx_lm.tokenizer_utils import TokenizerWrapper

from plimsoll.engine.protocol import TokenLogprob


class TokenLogprobs:
    """For one model. They are those of the step: after penalties, bias and grammar, before temperature and filters."""

    def __init__(self, tokenizer: TokenizerWrapper) -> None:
        self._tokenizer = tokenizer
        # On the generator's stream the work would wait for the next step, which is queued there already.
        self._stream = mx.new_stream(mx.cpu)

    def of(self, token: int, logprobs: mx.array, top: int) -> TokenLogprob:
        """``logprobs`` has shape (vocabulary,) and is evaluated. Tokens that were not allowed are left out."""
        size = logprobs.shape[0]
        top = min(top, size)
        with mx.stream(self._stream):
            values = logprobs.astype(mx.float32)
            best = mx.argpartition(-values, kth=top - 1)[:top] if 0 < top < size else mx.arange(top)
            wanted: Any = mx.concatenate([mx.array([token]), best])
            found: Any = mx.take(values, wanted)
            tokens, likely = wanted.tolist(), found.tolist()
        pairs = [(float(value), int(other)) for value, other in zip(likely, tokens, strict=True)]
        alternatives = [(self._text(other), value) for value, other in sorted(pairs[1:], reverse=True)]
        allowed = [(text, value) for text, value in alternatives if value > -math.inf]
        return TokenLogprob(self._text(token), pairs[0][0], allowed)

    def _text(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))
