"""Anthropic's answers on the wire: the events of a stream, the whole message, and errors."""

import itertools
import uuid
from collections.abc import Hashable, Iterator
from typing import Any

import msgspec

from plimsoll.actors.replies import Delta, Finished, ToolCallDelta, Waiting
from plimsoll.engine.protocol import Usage
from plimsoll.errors import PlimsollError
from plimsoll.http.answer import WholeAnswer
from plimsoll.http.endpoint import AnswerEncoder

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
Piece = Delta | ToolCallDelta
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class MessageEncoder(AnswerEncoder):
    """Messages."""

    def __init__(self, answer_id: str, model: str) -> None:
        self._head = {"id": f"msg_{answer_id}", "type": "message", "role": "assistant", "model": model}
        self._started = False
        self._prompt_tokens = 0
        self._open: Hashable = None
        self._blocks = 0
        self._blank = ""  # text that is held back until more than blanks come

    def events(self, index: int, batch: list[Any]) -> bytes:  # noqa: ARG002 - there is only one answer
        out = b"".join(self._run(key, pieces) for key, pieces in _runs(batch))
        for item in batch:
            if isinstance(item, Waiting) and item.stage == "prefill":
                self._prompt_tokens = item.total
            elif isinstance(item, Finished):
                out += self._ending(item)
        return self._start() + out if out else b""

    def silence(self, waiting: Waiting | None) -> bytes:  # noqa: ARG002 - a ping says nothing of it
        # The prompt's tokens are known once it is read, and clients skip a ping before the start.
        return (self._start() if self._prompt_tokens else b"") + PING

    def failure(self, error: PlimsollError) -> bytes:
        return _event("error", error_body(error.status, error.message))

    def whole(self, answers: list[WholeAnswer]) -> dict[str, Any]:
        (answer,) = answers
        content = [_block(Delta("", 0, reasoning=True)) | {"thinking": answer.reasoning}] if answer.reasoning else []
        # Clients take the first block without looking whether there is one.
        if answer.text.strip() or not (content or answer.calls):
            content.append(_block(Delta("", 0)) | {"text": answer.text})
        for index, call in enumerate(answer.calls):
            content.append(_block(ToolCallDelta(index, call.name)) | {"input": call.values})
        reason = _reason(answer.reason, answer.stop)
        ending = {"stop_reason": reason, "stop_sequence": answer.stop, "usage": _usage(answer.usage)}
        return self._head | {"content": content} | ending

    def _start(self) -> bytes:
        if self._started:
            return b""
        self._started = True
        begun: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
        usage = _usage(Usage(prompt_tokens=self._prompt_tokens))
        return _event("message_start", {"message": {**self._head, **begun, "usage": usage}})

    def _run(self, key: Hashable, pieces: list[Piece]) -> bytes:
        text = "".join(_text(piece) for piece in pieces)
        if key == "text" != self._open:
            # Models write empty lines between their thoughts and a call; no client wants a block of them.
            text, self._blank = self._blank + text, ""
            if not text.strip():
                self._blank = text
                return b""
        else:
            self._blank = ""
        out = b""
        if key != self._open:
            out = self._close() + self._open_block(key, pieces[0])
        index = self._blocks - 1
        if text:
            out += _event("content_block_delta", {"index": index, "delta": _delta(pieces[0], text)})
        return out

    def _open_block(self, key: Hashable, first: Piece) -> bytes:
        self._open = key
        self._blocks += 1
        return _event("content_block_start", {"index": self._blocks - 1, "content_block": _block(first)})

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _event("content_block_stop", {"index": self._blocks - 1})

    def _ending(self, finished: Finished) -> bytes:
        out = b"" if self._blocks else self._open_block("text", Delta("", 0))
        out += self._close()
        delta = {"stop_reason": _reason(finished.reason, finished.stop), "stop_sequence": finished.stop}
        return out + _event("message_delta", {"delta": delta, "usage": _usage(finished.usage)}) + _event("message_stop")


def _reason(reason: str, stop: str | None) -> str:
    if reason == "stop" and stop is not None:
        return "stop_sequence"
    return {"length": "max_tokens", "tool_calls": "tool_use"}.get(reason, "end_turn")


def _usage(usage: Usage) -> dict[str, int]:
    # Anthropic counts the cached tokens apart from the rest of the prompt.
    return {
        "input_tokens": max(0, usage.prompt_tokens - usage.cached_tokens),
        "output_tokens": usage.completion_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
    }


def _runs(items: list[Any]) -> Iterator[tuple[Hashable, list[Piece]]]:
    """The pieces that follow each other and belong to one block."""
    pieces = (item for item in items if isinstance(item, Delta | ToolCallDelta))
    for key, run in itertools.groupby(pieces, _key):
        yield key, list(run)


def _key(piece: Piece) -> Hashable:
    if isinstance(piece, ToolCallDelta):
        return piece.index
    return "thinking" if piece.reasoning else "text"


def _text(piece: Piece) -> str:
    return piece.arguments if isinstance(piece, ToolCallDelta) else piece.text


def _block(first: Piece) -> dict[str, Any]:
    """A block without its content."""
    if isinstance(first, ToolCallDelta):
        return {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:24]}", "name": first.name, "input": {}}
    if first.reasoning:
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "text", "text": ""}


def _delta(first: Piece, text: str) -> dict[str, Any]:
    if isinstance(first, ToolCallDelta):
        return {"type": "input_json_delta", "partial_json": text}
    if first.reasoning:
        return {"type": "thinking_delta", "thinking": text}
    return {"type": "text_delta", "text": text}


def _event(name: str, fields: dict[str, Any] | None = None) -> bytes:
    data = msgspec.json.encode({"type": name, **(fields or {})})
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"


def error_body(status: int, message: str) -> dict[str, Any]:
    """``{"type": "error", "error": {type, message}}``, the type by the status."""
    other = "invalid_request_error" if status < 500 else "api_error"
    return {"type": "error", "error": {"type": _TYPES.get(status, other), "message": message}}


def format_error(status: int, error: dict[str, Any]) -> tuple[int, Any]:
    """The ``ErrorFormat`` of this API."""
    return status, error_body(status, error["message"])
