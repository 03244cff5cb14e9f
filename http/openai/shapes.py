"""What OpenAI's answers have in common: their heads, usages, log-probabilities and ids."""

import uuid
from typing import Any

import msgspec

from plimsoll import __version__
from plimsoll.actors.messages import Delta
from plimsoll.engine.protocol import TokenLogprob, Usage
from plimsoll.http.whole import Whole

FINGERPRINT = f"plimsoll-{__version__}"
DONE = b"data: [DONE]\n\n"


class Head(msgspec.Struct):
    """What every chunk of an answer says; ``count`` answers stand side by side, ``per_prompt`` to each prompt.

    ``scored`` answers have log-probabilities, which come after their text.
    """

    id: str
    model: str
    created: int
    count: int = 1
    per_prompt: int = 1
    include_usage: bool = False
    scored: bool = False

    def body(self, kind: str) -> dict[str, Any]:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return head | {"system_fingerprint": FINGERPRINT}


def text_waits(batch: list[Any], *, scored: bool) -> bool:
    """Whether the text at the end of a batch should wait for its log-probabilities, which are just behind it."""
    return scored and bool(batch) and isinstance(batch[-1], Delta)


class Usages:
    """The tokens of several answers: each prompt counts once, all completions count."""

    def __init__(self, head: Head) -> None:
        self._left = head.count
        self._per_prompt = head.per_prompt
        self._prompt = self._completion = self._cached = self._reasoning = 0

    @property
    def complete(self) -> bool:
        return self._left == 0

    def add(self, index: int, usage: Usage, reasoning_tokens: int) -> None:
        self._left -= 1
        self._completion += usage.completion_tokens
        self._reasoning += reasoning_tokens
        if index % self._per_prompt == 0:
            self._prompt += usage.prompt_tokens
            self._cached += usage.cached_tokens

    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "prompt_tokens": self._prompt,
            "completion_tokens": self._completion,
            "total_tokens": self._prompt + self._completion,
            "prompt_tokens_details": {"cached_tokens": self._cached},
        }
        if self._reasoning:
            body["completion_tokens_details"] = {"reasoning_tokens": self._reasoning}
        return body


def usage_body(head: Head, wholes: list[Whole]) -> dict[str, Any]:
    usages = Usages(head)
    for index, whole in enumerate(wholes):
        usages.add(index, whole.usage, whole.reasoning_tokens)
    return usages.body()


def logprobs_body(tokens: list[TokenLogprob]) -> dict[str, Any]:
    content = [
        token_body(token.text, token.logprob) | {"top_logprobs": [token_body(*other) for other in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def token_body(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": likelihood(logprob), "bytes": list(text.encode())}


def likelihood(logprob: float) -> float:
    """OpenAI's figure for next to impossible in the place of minus infinity, which JSON does not have."""
    return max(logprob, -9999.0)


def call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
