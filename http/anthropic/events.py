"""Anthropic's answer shapes: the events of a stream, and the whole message."""

import itertools
import uuid
from collections.abc import Hashable, Iterator
from typing import Any

import msgspec

from plimsoll.actors.messages import Delta, Finished, ToolCallDelta, Waiting
from plimsoll.engine.protocol import Usage
from plimsoll.errors import PlimsollError
from plimsoll.http.anthropic.errors import error_body
from plimsoll.http.whole import Whole

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
Piece = Delta | ToolCallDelta


class Events:
    """The server-sent events of one streamed answer."""

    def __init__(self, answer_id: str, model: str) -> None:
        self._head = _head(answer_id, model)
        self._started = False
        self._prompt_tokens = 0
        self._open: Hashable = None
        self._blocks = 0

    def events(self, _index: int, batch: list[Any]) -> bytes:
        """The events that these replies make; none for those that only say what is waited for."""
        out = b"".join(self._run(key, pieces) for key, pieces in _runs(batch))
        for item in batch:
            if isinstance(item, Waiting) and item.stage == "prefill":
                self._prompt_tokens = item.total
            elif isinstance(item, Finished):
                out += self._ending(item)
        return self._start() + out if out else b""

    def silence(self, _waiting: Waiting | None) -> bytes:
        """What a waiting client gets."""
        return self._start() + PING

    def failure(self, error: PlimsollError) -> bytes:
        """The event that ends a stream which can't go on; clients raise on it."""
        return _event("error", error_body(error.status, error.message))

    def _start(self) -> bytes:
        if self._started:
            return b""
        self._started = True
        usage = _usage(Usage(prompt_tokens=self._prompt_tokens))
        message = self._head | {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        return _event("message_start", {"message": message})

    def _run(self, key: Hashable, pieces: list[Piece]) -> bytes:
        out = b""
        if key != self._open:
            out = self._close() + self._open_block(key, pieces[0])
        index = self._blocks - 1
        if text := "".join(_text(piece) for piece in pieces):
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


def message(answer_id: str, model: str, whole: Whole) -> dict[str, Any]:
    """The whole answer of a request that does not stream."""
    content = [_block(Delta("", 0, reasoning=True)) | {"thinking": whole.reasoning}] if whole.reasoning else []
    # Clients take the first block without looking whether there is one.
    if whole.text or not (content or whole.calls):
        content.append(_block(Delta("", 0)) | {"text": whole.text})
    for index, call in enumerate(whole.calls):
        content.append(_block(ToolCallDelta(index, call.name)) | {"input": arguments(call.arguments)})
    reason = _reason(whole.reason, whole.stop)
    ending = {"stop_reason": reason, "stop_sequence": whole.stop, "usage": _usage(whole.usage)}
    return _head(answer_id, model) | {"content": content} | ending


def arguments(text: str) -> Any:
    """A call's arguments as JSON values; what is no JSON (an answer that was cut short) stays text in ``_raw``."""
    try:
        return msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, RecursionError):
        return {"_raw": text}


def _reason(reason: str, stop: str | None) -> str:
    if reason == "stop" and stop is not None:
        return "stop_sequence"
    return {"length": "max_tokens", "tool_calls": "tool_use"}.get(reason, "end_turn")


def _head(answer_id: str, model: str) -> dict[str, Any]:
    return {"id": f"msg_{answer_id}", "type": "message", "role": "assistant", "model": model}


def _usage(usage: Usage) -> dict[str, int]:
    # Anthropic counts what came out of the cache apart from the rest of the prompt.
    return {
        "input_tokens": max(0, usage.prompt_tokens - usage.cached_tokens),
        "output_tokens": usage.completion_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
    }


def _runs(items: list[Any]) -> Iterator[tuple[Hashable, list[Piece]]]:
    """Neighbours that belong to one block."""
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
