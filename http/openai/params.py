"""What OpenAI's endpoints that generate text have in common: sampling, limits, stops, and several answers at once."""

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from plimsoll.engine.protocol import Sampling
from plimsoll.http.body import MAX_STOP_CHARS, MAX_STOPS, refuse, shown

MAX_ANSWERS = 8
MAX_BIASES = 1024
_INT64 = 2**63
_TOKENS_MAX = 2**31 - 1
# Other servers read 0 and -1 as no limit, and clients rely on it.
Tokens = Annotated[int, Meta(ge=-1, le=_TOKENS_MAX)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Stop = Annotated[str, Meta(max_length=MAX_STOP_CHARS)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class Common(msgspec.Struct, kw_only=True):
    """Null means the default everywhere; unknown keys are ignored."""

    model: str = ""
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=_TOKENS_MAX)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-_INT64, le=_INT64 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    logit_bias: Annotated[dict[str, float], Meta(max_length=MAX_BIASES)] | None = None
    user: str | None = None

    def stops(self) -> tuple[str, ...]:
        """The stop strings; an empty one is none."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in given if text)

    def given(self) -> tuple[str, ...]:
        """The values of ``Sampling`` that the client set."""
        return tuple([name for name in Sampling.__struct_fields__ if getattr(self, name) is not None])

    def sampling(self) -> Sampling:
        """The client's sampling values. Raises ``BadRequest`` for a bias that is no number from -100 to 100."""
        given = {name: getattr(self, name) for name in self.given()}
        if biases := given.pop("logit_bias", None):
            given["logit_bias"] = _biases(biases)
        return Sampling(**given)


class WithChoices(Common, kw_only=True):
    """The endpoints whose answer is a list of choices."""

    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_ANSWERS)] | None = None

    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


ALLOWED = {
    "model": "a model's name",
    "user": "a string",
    "stream": "true or false",
    "stream_options": 'an object like {"include_usage": true}',
    "max_tokens": f"an integer from 1 to {_TOKENS_MAX}, or -1 for no limit",
    "max_completion_tokens": f"an integer from 1 to {_TOKENS_MAX}, or -1 for no limit",
    "max_output_tokens": f"an integer from 1 to {_TOKENS_MAX}, or -1 for no limit",
    "temperature": "a number from 0 to 2",
    "top_p": "a number from 0 to 1",
    "top_k": f"an integer from 0 or -1 (off) to {_TOKENS_MAX}",
    "min_p": "a number from 0 to 1",
    "seed": "an integer of 64 bits",
    "stop": f"a string of up to {MAX_STOP_CHARS} characters or a list of up to {MAX_STOPS} of them",
    "stop[]": f"a string of up to {MAX_STOP_CHARS} characters",
    "presence_penalty": "a number from -2 to 2",
    "frequency_penalty": "a number from -2 to 2",
    "repetition_penalty": "a number above 0, up to 10",
    "logit_bias": f'an object of up to {MAX_BIASES} token ids with numbers from -100 to 100, like {{"50256": -100}}',
    "logit_bias[]": "a number from -100 to 100",
    "n": f"an integer from 1 to {MAX_ANSWERS}",
    "top_logprobs": "an integer from 0 to 20",
    "reasoning_effort": "none, minimal, low, medium, high, xhigh or max",
    "reasoning.effort": "none, minimal, low, medium, high, xhigh or max",
}


def most_tokens(given: int | None) -> int | None:
    """The most tokens of an answer; None for no limit, which 0 and -1 mean."""
    return given if given and given > 0 else None


def thinking(effort: str | None) -> dict[str, Any]:
    """The fields of a ``ChatRequest`` for a reasoning effort; templates know efforts, or only thinking or not."""
    if effort is None:
        return {}
    return {"thinking": effort not in ("none", "minimal"), "template_kwargs": {"reasoning_effort": effort}}


def _biases(given: dict[str, float]) -> dict[int, float]:
    for token, bias in given.items():
        if not re.fullmatch(r"\d{1,9}", token):
            raise refuse("logit_bias", f"has the key {shown(token)}, but its keys must be token ids")
        if not -100 <= bias <= 100:
            raise refuse("logit_bias", f"is {bias:g} for token {token}, but must be a number from -100 to 100")
    return {int(token): bias for token, bias in given.items()}
