"""Ollama's answers on the wire: the lines of a stream, the whole answer, and errors."""

import struct
import time
from datetime import UTC, datetime
from typing import Any

import msgspec

from plimsoll.actors.replies import Delta, Finished, Logprobs, ToolCallDelta, Waiting
from plimsoll.engine.protocol import TokenLogprob, Usage
from plimsoll.errors import PlimsollError
from plimsoll.http.answer import Call, WholeAnswer
from plimsoll.http.endpoint import AnswerEncoder

NDJSON = "application/x-ndjson"
# A full queue is Ollama's own reason for 503; its clients know no 429.
_BUSY = frozenset({"queue_full", "insufficient_memory", "unavailable", "shutting_down"})
_LOADING = frozenset({"fetch", "convert", "read"})


class Timing:
    """When an answer's load, prompt and text were done, as far as its items show."""

    def __init__(self) -> None:
        self._start_ns = time.monotonic_ns()
        self._loaded_ns = self._start_ns
        self._first_ns = 0

    def note(self, batch: list[Any]) -> None:
        """Note the time of a batch of items that has just come."""
        for item in batch:
            if isinstance(item, Waiting):
                if item.stage in _LOADING:
                    self._loaded_ns = time.monotonic_ns()
            elif not self._first_ns:
                self._first_ns = time.monotonic_ns()

    def load(self) -> dict[str, int]:
        """Durations of the whole request and of the load, in ns."""
        total = time.monotonic_ns() - self._start_ns
        return {"total_duration": total, "load_duration": self._loaded_ns - self._start_ns}

    def figures(self, usage: Usage) -> dict[str, int]:
        """Token counts, and durations in ns."""
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
    """Makes the bodies of one answer, of chat or of generate."""

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
        """The body for a whole answer's content, or for a piece of it."""
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
        """The last line of a stream; with ``said``, the content, the whole answer."""
        return self.part(**said) | {"done": True, "done_reason": reason} | (figures or {})


class LineEncoder(AnswerEncoder):
    """Answers of chat and generate. A stream has a line for each piece of text, and one for all tool calls."""

    content_type = NDJSON

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._timing = Timing()
        self._calls = WholeAnswer()

    def hear(self, batch: list[Any]) -> None:
        self._timing.note(batch)

    def events(self, index: int, batch: list[Any]) -> bytes:  # noqa: ARG002 - there is only one answer
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

    def silence(self, waiting: Waiting | None) -> bytes:  # noqa: ARG002 - there is no field for it
        return line(self._shape.part())  # clients read every line as JSON, so it is an empty piece of text

    def failure(self, error: PlimsollError) -> bytes:
        return error_line(error)

    def whole(self, answers: list[WholeAnswer]) -> dict[str, Any]:
        (answer,) = answers
        figures = self._timing.figures(answer.usage)
        said = {"text": answer.text, "thinking": answer.reasoning, "calls": answer.calls, "logprobs": answer.logprobs}
        return self._shape.end(done_reason(answer.reason), figures, **said)


class EmbedEncoder(AnswerEncoder):
    """Vectors of several texts, which are never streamed. Without texts there is no answer, and no vector."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._timing = Timing()

    def hear(self, batch: list[Any]) -> None:
        self._timing.note(batch)

    def whole(self, answers: list[WholeAnswer]) -> dict[str, Any]:
        answer = answers[0] if answers else WholeAnswer()
        figures = self._timing.load() | {"prompt_eval_count": answer.usage.prompt_tokens}
        return {"model": self._model, "embeddings": _rows(answer), **figures}


class OneVectorEncoder(AnswerEncoder):
    """The vector of one text, in the older form. Without a text there is no answer, and the vector is empty."""

    def whole(self, answers: list[WholeAnswer]) -> dict[str, Any]:
        rows = _rows(answers[0]) if answers else []
        return {"embedding": rows[0] if rows else []}


def _rows(answer: WholeAnswer) -> list[list[float]]:
    vectors = answer.vectors
    return [] if vectors is None else [list(row) for row in struct.iter_unpack(f"<{vectors.dimensions}f", vectors.data)]


def line(body: dict[str, Any]) -> bytes:
    """One line of a stream."""
    return msgspec.json.encode(body) + b"\n"


def done_reason(reason: str) -> str:
    """Ollama's word for ``reason``: it knows stop and length only, so tool calls are a stop."""
    return "length" if reason == "length" else "stop"


def timestamp(seconds: float) -> str:
    """A time in seconds since the epoch, as RFC 3339."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _call(call: Call) -> dict[str, Any]:
    return {"function": {"name": call.name, "arguments": call.values}}


def _logprob(token: TokenLogprob) -> dict[str, Any]:
    top = [_token(*other) for other in token.alternatives]
    said = _token(token.text, token.logprob, token.encoded)
    return said | ({"top_logprobs": top} if top else {})


def _token(text: str, logprob: float, encoded: bytes) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(encoded)}


def error_body(message: str, code: str) -> dict[str, str]:
    """``{"error": "..."}``."""
    return {"error": f"server busy, please try again: {message}" if code in _BUSY else message}


def error_line(error: PlimsollError) -> bytes:
    """The line that ends a stream which can't go on."""
    return msgspec.json.encode(error_body(error.message, error.code)) + b"\n"


def format_error(status: int, error: dict[str, Any]) -> tuple[int, Any]:
    """The ``ErrorFormat`` of this API."""
    return (503 if error["code"] in _BUSY else status), error_body(error["message"], error["code"])
