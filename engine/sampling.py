"""How a request's next token is chosen: samplers with their own random key, and penalties.

The filters are mlx-lm's formulas without its ``mx.compile``: on a CPU that runs a C++ compiler once for every
distinct ``top_p``, about half a second each, and the compiled variants are never freed.
"""

import math
import os
from collections.abc import Callable

import mlx.core as mx
from mlx_lm.sample_utils import (
    greedy_sampler,
    make_frequency_penalty,
    make_presence_penalty,
    make_repetition_penalty,
)

from plimsoll.engine.protocol import Sampling

Sampler = Callable[[mx.array], mx.array]
Processor = Callable[[mx.array, mx.array], mx.array]

# Below it 1 / temperature overflows float32 for real logits, and the answer is the greedy one anyway.
_GREEDY_BELOW = 1e-4
# Smaller ones underflow to 0 in float32, which would drop even the likeliest token.
_LEAST_TOP_P = 1e-6
# mlx-lm's penalties look at the last N tokens; this N covers any context.
_ALL = 1 << 30
_MOST_SHARED = 64


class Samplers:
    """Gives each request its sampler: (batch, vocabulary) log-probabilities to (batch,) token ids.

    A batch whose requests share one sampler object is sampled in one call, so requests without a seed share one per
    setting. A seed gets its own key, so the answer depends on nothing else in the batch.
    """

    def __init__(self) -> None:
        self._shared: dict[tuple[float, float, int, float], Sampler] = {}

    def sampler(self, sampling: Sampling) -> Sampler:
        if sampling.temperature < _GREEDY_BELOW:
            return greedy_sampler  # type: ignore[no-any-return]  # mlx-lm is untyped here
        if sampling.seed is not None:
            return _Categorical(sampling, sampling.seed % (1 << 64))
        # Penalties and biases are not the sampler's business and must not split the group.
        key = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p)
        if key not in self._shared:
            if len(self._shared) >= _MOST_SHARED:
                self._shared.clear()
            self._shared[key] = _Categorical(sampling, int.from_bytes(os.urandom(8), "little"))
        return self._shared[key]


class _Categorical:
    """Draws from the filtered distribution with its own chain of keys; filters first, then temperature, as mlx-lm."""

    def __init__(self, sampling: Sampling, seed: int) -> None:
        self._sampling = sampling
        self._key = mx.random.key(seed)

    def __call__(self, logprobs: mx.array) -> mx.array:
        sampling = self._sampling
        if sampling.top_p < 1:
            logprobs = keep_top_p(logprobs, max(sampling.top_p, _LEAST_TOP_P))
        if sampling.min_p > 0:
            logprobs = keep_min_p(logprobs, sampling.min_p)
        # A top_k of the whole vocabulary or more is no limit; mlx-lm's filter would raise in the middle of a step.
        if 0 < sampling.top_k < logprobs.shape[-1]:
            logprobs = keep_top_k(logprobs, sampling.top_k)
        self._key, key = mx.random.split(self._key)
        return mx.random.categorical(logprobs * (1 / sampling.temperature), key=key)


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
