"""OpenAI's responses on the wire: the response object, whole or grown by numbered events."""

from typing import Any

import msgspec

from plimsoll.actors.messages import Finished, Waiting
from plimsoll.engine.protocol import Usage
from plimsoll.errors import BadRequest, PlimsollError, QueueFull
from plimsoll.http.openai.responses.items import Event, Output, whole_output
from plimsoll.http.sse import comment
from plimsoll.http.whole import Whole

_encode = msgspec.json.encode
Body = dict[str, Any]


class Events:
    """The server-sent events of a streamed response; ``started`` is the response object before it has anything."""

    def __init__(self, started: Body, *, scored: bool) -> None:
        self._started = started
        self._output = Output(scored=scored)
        self._number = 0

    def events(self, index: int, batch: list[Any]) -> bytes:  # noqa: ARG002 - there is only one answer
        events = self._output.add(batch)
        if batch and isinstance(batch[-1], Finished):
            ending = batch[-1]
            status = _status(ending.reason)
            events += self._output.close(status)
            usage = _usage(ending.usage, self._output.reasoning_tokens)
            events.append(_lifecycle(status, _ended(self._started, status, self._output.items, usage)))
        return self._numbered(events)

    def silence(self, waiting: Waiting | None) -> bytes:
        return comment(waiting)

    def failure(self, error: PlimsollError) -> bytes:
        """Part of the protocol here: a response that failed, with what there is of it."""
        told = {"code": _failure_code(error), "message": error.message, "type": error.code, "param": error.param}
        events = self._output.close("incomplete", failed=True)
        body = _ended(self._started, "failed", self._output.items, None) | {"error": told}
        return self._numbered([*events, _lifecycle("failed", body)])

    def _numbered(self, events: list[Event]) -> bytes:
        if events and self._number == 0:
            events = [_lifecycle("created", self._started), _lifecycle("in_progress", self._started), *events]
        out = b""
        for event in events:
            event["sequence_number"] = self._number
            self._number += 1
            out += b"event: " + str(event["type"]).encode() + b"\ndata: " + _encode(event) + b"\n\n"
        return out


def response_body(started: Body, whole: Whole) -> Body:
    """The response object of a request that does not stream."""
    status = _status(whole.reason)
    return _ended(started, status, whole_output(whole, status), _usage(whole.usage, whole.reasoning_tokens))


def _lifecycle(kind: str, response: Body) -> Event:
    return {"type": f"response.{kind}", "response": response}


def _status(reason: str) -> str:
    return "incomplete" if reason == "length" else "completed"


def _ended(started: Body, status: str, output: list[Body], usage: Body | None) -> Body:
    why = {"reason": "max_output_tokens"} if status == "incomplete" else None
    return started | {"status": status, "output": output, "usage": usage, "incomplete_details": why}


def _usage(usage: Usage, reasoning_tokens: int) -> Body:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _failure_code(error: PlimsollError) -> str:
    """One of the codes that a response may fail with; our own stands in ``type``."""
    if isinstance(error, BadRequest):
        return "invalid_prompt"
    return "rate_limit_exceeded" if isinstance(error, QueueFull) else "server_error"
