"""Ollama's answer shapes: the lines of a stream, and the whole answer."""

import time
from datetime import UTC, datetime
from typing import Any

import msgspec

from plimsoll.actors.messages import Delta, Finished, Logprobs, ToolCallDelta, Waiting
from plimsoll.engine.protocol import TokenLogprob, Usage
from plimsoll.errors import PlimsollError
from plimsoll.http.anthropic.events import arguments
from plimsoll.http.ollama.errors import error_line
from plimsoll.http.whole import Call, Whole

NDJSON = "application/x-ndjson"
_LOADING = frozenset({"fetch", "convert", "read"})


class Timing:
    """When an answer's stages were over, as far as its replies tell."""

    def __init__(self) -> None:
        self._start_ns = time.monotonic_ns()
        self._loaded_ns = self._start_ns
        self._first_ns = 0

    def note(self, batch: list[Any]) -> None:
        """Take up the replies of a batch that has just come."""
        for item in batch:
            if isinstance(item, Waiting):
                if item.stage in _LOADING:
                    self._loaded_ns = time.monotonic_ns()
            elif not self._first_ns:
                self._first_ns = time.monotonic_ns()

    def load(self) -> dict[str, int]:
        """Durations in ns of the whole and of the load."""
        total = time.monotonic_ns() - self._start_ns
        return {"total_duration": total, "load_duration": self._loaded_ns - self._start_ns}

    def figures(self, usage: Usage) -> dict[str, int]:
        """Tokens, and durations in ns."""
        now = time.monotonic_ns()
        first = self._first_ns or now
        return {
            **self.load(),
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": max(0, first - self._loaded_ns),
            "eval_count": usage.completion_tokens,
            "eval_duration": now - first,
        }


class Shape:
    """One answer's bodies, of chat or of generate."""

    def __init__(self, model: str, *, chat: bool) -> None:
        self._model = model
        self._chat = chat

    def part(
        self,
        text: str = "",
        thinking: str = "",
        calls: list[Call] | None = None,
        logprobs: list[TokenLogprob] | None = None,
    ) -> dict[str, Any]:
        """What an answer says, or a piece of it."""
        said: dict[str, Any] = {"thinking": thinking} if thinking else {}
        if calls:
            said["tool_calls"] = [_call(call) for call in calls]
        head = {"model": self._model, "created_at": timestamp(time.time()), "done": False}
        if logprobs:
            head["logprobs"] = [_logprob(one) for one in logprobs]
        if self._chat:
            return head | {"message": {"role": "assistant", "content": text} | said}
        return head | {"response": text} | said

    def end(self, reason: str, figures: dict[str, int] | None = None, **said: Any) -> dict[str, Any]:
        """The last line, or with ``said`` the whole answer."""
        return self.part(**said) | {"done": True, "done_reason": reason} | (figures or {})


class Lines:
    """The lines of one streamed answer."""

    def __init__(self, shape: Shape, timing: Timing) -> None:
        self._shape = shape
        self._timing = timing
        self._calls = Whole()

    def events(self, _index: int, batch: list[Any]) -> bytes:
        """The lines that these replies make: pieces as they come, tool calls when they are whole."""
        out: list[dict[str, Any]] = []
        text = "".join(item.text for item in batch if isinstance(item, Delta) and not item.reasoning)
        thinking = "".join(item.text for item in batch if isinstance(item, Delta) and item.reasoning)
        logprobs = [one for item in batch if isinstance(item, Logprobs) for one in item.tokens]
        if text or thinking or logprobs:
            out.append(self._shape.part(text, thinking, logprobs=logprobs))
        self._calls.add([item for item in batch if isinstance(item, ToolCallDelta)])
        if batch and isinstance(finished := batch[-1], Finished):
            if self._calls.calls:
                out.append(self._shape.part(calls=self._calls.calls))
            out.append(self._shape.end(done_reason(finished.reason), self._timing.figures(finished.usage)))
        return b"".join(line(one) for one in out)

    def silence(self, _waiting: Waiting | None) -> bytes:
        """An empty piece: clients read every line as JSON."""
        return line(self._shape.part())

    def failure(self, error: PlimsollError) -> bytes:
        return error_line(error)


def line(body: dict[str, Any]) -> bytes:
    """One line of a stream."""
    return msgspec.json.encode(body) + b"\n"


def done_reason(reason: str) -> str:
    """Ollama knows stop and length; calls are a stop."""
    return "length" if reason == "length" else "stop"


def timestamp(seconds: float) -> str:
    """RFC 3339 of a time since the epoch."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _call(call: Call) -> dict[str, Any]:
    return {"function": {"name": call.name, "arguments": arguments(call.arguments)}}


def _logprob(token: TokenLogprob) -> dict[str, Any]:
    top = [_token(text, logprob) for text, logprob in token.top]
    return _token(token.text, token.logprob) | ({"top_logprobs": top} if top else {})


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
