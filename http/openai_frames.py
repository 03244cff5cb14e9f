"""OpenAI's answer shapes. What is constant in a stream is serialised once; per token only its text is encoded."""

from typing import Any

import msgspec

from plimsoll import __version__
from plimsoll.actors.messages import Waiting
from plimsoll.engine.protocol import Usage
from plimsoll.errors import PlimsollError
from plimsoll.http.errors import envelope

FINGERPRINT = f"plimsoll-{__version__}"
DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.encode
_MB = 1_000_000


class Chunks:
    """The server-sent events of one streamed answer."""

    def __init__(self, answer_id: str, model: str, created: int, *, include_usage: bool) -> None:
        head = {"id": f"chatcmpl-{answer_id}", "object": "chat.completion.chunk", "created": created, "model": model}
        # Both without the last brace: what varies is appended.
        self._head = b"data: " + _encode(head | {"system_fingerprint": FINGERPRINT})[:-1]
        usage = b',"usage":null' if include_usage else b""
        self._before_text = self._head + b',"choices":[{"index":0,"delta":{"content":'
        self._after_text = b'},"logprobs":null,"finish_reason":null}]' + usage + b"}\n\n"
        self._include_usage = include_usage
        self._no_usage = usage

    def role(self) -> bytes:
        """The first one."""
        delta = b',"choices":[{"index":0,"delta":{"role":"assistant","content":""'
        return self._head + delta + self._after_text

    def text(self, text: str) -> bytes:
        """A piece of the answer."""
        return self._before_text + _encode(text) + self._after_text

    def ending(self, reason: str, usage: Usage) -> bytes:
        """The finish reason, the usage where it was asked for, and the end mark."""
        choice = b',"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":' + _encode(reason) + b"}]"
        last = self._head + choice + self._no_usage + b"}\n\n"
        if self._include_usage:
            last += self._head + b',"choices":[],"usage":' + _encode(usage_body(usage)) + b"}\n\n"
        return last + DONE


def failure(error: PlimsollError) -> bytes:
    """The event that ends a stream which can't go on; clients raise on it."""
    return b"data: " + _encode(envelope(error)) + b"\n\n"


def comment(waiting: Waiting | None) -> bytes:
    """A line that clients ignore and that keeps proxies from closing a silent stream."""
    return b": " + _waiting_text(waiting).encode() + b"\n\n"


def completion(answer_id: str, model: str, created: int, *, text: str, reason: str, usage: Usage) -> dict[str, Any]:
    """The whole answer of a request that does not stream."""
    message = {"role": "assistant", "content": text, "refusal": None}
    return {
        "id": f"chatcmpl-{answer_id}",
        "object": "chat.completion",
        "created": created,
        "model": model,
        "system_fingerprint": FINGERPRINT,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
        "usage": usage_body(usage),
    }


def model_body(name: str, created: int) -> dict[str, Any]:
    """One entry of the model list."""
    return {"id": name, "object": "model", "created": created, "owned_by": "plimsoll"}


def usage_body(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _waiting_text(waiting: Waiting | None) -> str:
    if waiting is None:
        return "waiting"
    if waiting.stage == "queue":
        return "waiting in the queue"
    if waiting.stage == "prefill":
        return f"reading the prompt: {waiting.done}/{waiting.total or '?'} tokens"
    total = f"{waiting.total / _MB:.0f}" if waiting.total else "?"
    return f"waiting for the model to load: {waiting.stage} {waiting.done / _MB:.0f}/{total} MB"
