"""How a request's next token is chosen: samplers with their own random key, and penalties.

The filters are mlx-lm's formulas without its ``mx.compile``: on a CPU that runs a C++ compiler once for every
distinct ``top_p``, about half a second each, and the compiled variants are never freed.
"""

import functools
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.sample_utils import (
    greedy_sampler,
    make_frequency_penalty,
    make_presence_penalty,
    make_repetition_penalty,
)
from mlx_lm.tokenizer_utils import TokenizerWrapper

from plimsoll.engine.protocol import Sampling, TokenLogprob

Sampler = Callable[[mx.array], mx.array]
Processor = Callable[[mx.array, mx.array], mx.array]
Narrow = Callable[[mx.array], mx.array]

# Below it 1 / temperature overflows float32 for real logits, and the answer is the greedy one anyway.
_GREEDY_BELOW = 1e-4
# mlx-lm's penalties look at the last N tokens; this N covers any context.
_ALL = 1 << 30
_64_BITS = (1 << 64) - 1


def known_tokens(tokenizer: TokenizerWrapper, vocab_size: int) -> Collection[int]:
    """The ids below ``vocab_size``, a model's own size, that the tokenizer has a text for.

    Many models are padded to a round size: Qwen's tokenizer knows 151,665 tokens, its model computes 151,936 scores.
    """
    if vocab_size <= len(tokenizer):
        return range(vocab_size)
    return {token for token in tokenizer.get_vocab().values() if token < vocab_size}


def narrow_to(known: Collection[int], vocab_size: int) -> Narrow:
    """Leaves of logits (rows, ``vocab_size``) those of ``known`` tokens; others are never sampled.

    Padding at the end is cut off, which costs nothing; a hole in the middle gets minus infinity.
    """
    size = max(known, default=vocab_size - 1) + 1
    if len(known) == vocab_size:
        return lambda logits: logits
    if len(known) in (0, size):
        return lambda logits: logits[:, :size]
    have = mx.zeros(size, mx.bool_)
    have[mx.array(sorted(known))] = True
    mx.eval(have)
    return lambda logits: mx.where(have, logits[:, :size], mx.array(-mx.inf, logits.dtype))


def sampler_for(sampling: Sampling) -> Sampler:
    """(batch, vocabulary) log-probabilities to (batch,) token ids; a request without a seed gets one."""
    if sampling.temperature < _GREEDY_BELOW:
        return greedy_sampler  # type: ignore[no-any-return]  # mlx-lm is untyped here
    return Seeded(sampling, int.from_bytes(os.urandom(8), "little") if sampling.seed is None else sampling.seed)


class Seeded:
    """Draws one request's tokens from the filtered distribution; filters first, then temperature, as mlx-lm.

    Token number ``position`` of the answer depends on the seed, its number and the log-probabilities alone: not on
    what else is in the batch, and not on which worker has drawn the tokens before it.
    """

    def __init__(self, sampling: Sampling, seed: int) -> None:
        self._sampling = sampling
        self._seed = seed
        self.position = 0

    @property
    def kind(self) -> tuple[float, float, int, float]:
        """Rows of one kind are drawn in one call."""
        # Penalties and biases are not the sampler's business and must not split the group.
        return self._sampling.temperature, self._sampling.top_p, self._sampling.top_k, self._sampling.min_p

    def __call__(self, logprobs: mx.array) -> mx.array:
        return draw([self], logprobs)

    @property
    def key(self) -> mx.array:
        """The random key of the next token."""
        # splitmix64 (Steele, Lea, Flood 2014): neighbouring positions and neighbouring seeds share nothing.
        mixed = (self._seed + (self.position + 1) * 0x9E3779B97F4A7C15) & _64_BITS
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _64_BITS
        made: mx.array = mx.random.key(mixed ^ (mixed >> 31))
        return made

    def ahead(self, count: int) -> "list[Seeded]":
        """Samplers of the next so many tokens, each of which draws as this one will when its turn has come."""
        made = [Seeded(self._sampling, self._seed) for _ in range(count)]
        for index, one in enumerate(made):
            one.position = self.position + index
        return made

    def narrow(self, logprobs: mx.array) -> mx.array:
        sampling = self._sampling
        if sampling.top_p < 1:
            logprobs = keep_top_p(logprobs, sampling.top_p)
        if sampling.min_p > 0:
            logprobs = keep_min_p(logprobs, sampling.min_p)
        # A top_k of the whole vocabulary or more is no limit; mlx-lm's filter would raise in the middle of a step.
        if 0 < sampling.top_k < logprobs.shape[-1]:
            logprobs = keep_top_k(logprobs, sampling.top_k)
        return logprobs * (1 / sampling.temperature)


def draw(samplers: Sequence[Seeded], logprobs: mx.array) -> mx.array:
    """One token for each row, by samplers of one kind; each row as if it were alone."""
    tokens: mx.array = _draw_rows(samplers[0].narrow(logprobs), mx.stack([one.key for one in samplers]))
    for one in samplers:
        one.position += 1
    return tokens


def _draw_row(logits: mx.array, key: mx.array) -> mx.array:
    return mx.random.categorical(logits, key=key)


_draw_rows: Any = mx.vmap(_draw_row)


def keep_top_p(logprobs: mx.array, top_p: float) -> mx.array:
    """The smallest set of tokens whose probabilities sum to ``top_p``; the others get -inf (nucleus sampling)."""
    ascending = mx.sort(logprobs, axis=-1)
    probabilities = mx.exp(ascending.astype(mx.float32))
    above = mx.cumsum(probabilities, axis=-1, reverse=True, inclusive=False)
    total = above[..., :1] + probabilities[..., :1]
    dropped = (above >= top_p * total).sum(axis=-1, keepdims=True)
    return mx.where(logprobs < mx.take_along_axis(ascending, dropped, axis=-1), -mx.inf, logprobs)


def keep_min_p(logprobs: mx.array, min_p: float) -> mx.array:
    """The tokens with at least ``min_p`` times the likeliest one's probability."""
    least = mx.max(logprobs, axis=-1, keepdims=True) + math.log(min_p)
    return mx.where(logprobs < least, -mx.inf, logprobs)


def keep_top_k(logprobs: mx.array, top_k: int) -> mx.array:
    """The ``top_k`` likeliest tokens; ``0 < top_k < vocabulary``."""
    others = mx.argpartition(-logprobs, kth=top_k - 1, axis=-1)[..., top_k:]
    return mx.put_along_axis(logprobs, others, mx.array(-mx.inf, logprobs.dtype), axis=-1)


def penalties(sampling: Sampling, prompt_tokens: int) -> list[Processor]:
    """Logits processors over (tokens so far, logits).

    Presence and frequency count generated tokens only, as OpenAI's do; repetition (arXiv 1909.05858) counts the
    prompt too. A bias is added to its token's logit. None of them can raise: mlx-lm drops a request whose processor
    does.
    """
    processors: list[Processor] = []
    if sampling.repetition_penalty != 1:
        processors.append(make_repetition_penalty(sampling.repetition_penalty, _ALL))
    if sampling.presence_penalty:
        processors.append(_generated_only(make_presence_penalty(sampling.presence_penalty, _ALL), prompt_tokens))
    if sampling.frequency_penalty:
        processors.append(_generated_only(make_frequency_penalty(sampling.frequency_penalty, _ALL), prompt_tokens))
    if sampling.logit_bias:
        processors.append(_biased(sampling.logit_bias))
    return processors


def _biased(bias: dict[int, float]) -> Processor:
    tokens, values = mx.array(list(bias)), mx.array(list(bias.values()))
    return lambda _, logits: logits.at[:, tokens].add(values.astype(logits.dtype))


def _generated_only(processor: Processor, prompt_tokens: int) -> Processor:
    return lambda tokens, logits: processor(tokens[prompt_tokens:], logits)


class TokenLogprobs:
    """For one model. They are those of the step: after penalties, bias and grammar, before temperature and filters."""

    def __init__(self, tokenizer: TokenizerWrapper) -> None:
        self._tokenizer = tokenizer
        self._said = functools.lru_cache(_KEPT_TEXTS)(self._say)
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
        return self.told(token, likely[0], zip(tokens[1:], likely[1:], strict=True))

    def told(self, token: int, logprob: float, others: Iterable[tuple[int, float]]) -> TokenLogprob:
        """A token with its log-probability, and with ``others`` in their order, the likeliest first."""
        allowed = sorted(((value, other) for other, value in others if value > -math.inf), reverse=True)
        said = [self._said(other) for _, other in allowed]
        alternatives = [(text, value) for (text, _), (value, _) in zip(said, allowed, strict=True)]
        parts = {at: part for at, (_, part) in enumerate(said) if part}
        text, part = self._said(token)
        return TokenLogprob(text, logprob, alternatives, part, parts)

    def _say(self, token: int) -> tuple[str, bytes]:
        """The token's text, and its bytes where these are only a part of a character."""
        text, piece = str(self._tokenizer.decode([token])), self._tokenizer.convert_ids_to_tokens(token)
        if "\ufffd" in text:
            return text, _bytes_of(piece)
        # SentencePiece: decoded alone, a token loses the space that it begins with.
        lost = isinstance(piece, str) and _SPACE in piece and _SPACE not in text
        return piece.replace(_SPACE, " ") if lost else text, b""


_SPACE = "\u2581"  # what SentencePiece writes for a space
_KEPT_TEXTS = 1 << 14


def _byte_letters() -> dict[str, int]:
    """The byte that each letter stands for in the tokens of byte-level BPE, as GPT-2 wrote them first."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + index): byte for index, byte in enumerate(others)}


_LETTERS = _byte_letters()
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


def _bytes_of(piece: str) -> bytes:
    """The bytes of a token that its vocabulary writes so; none where that is neither of the two known ways."""
    if alone := _BYTE_TOKEN.fullmatch(piece):
        return bytes([int(alone[1], 16)])
    return bytes(_LETTERS[letter] for letter in piece) if all(letter in _LETTERS for letter in piece) else b""
