"""OpenAI's responses on the wire: the response object, whole or grown by numbered events."""

from collections.abc import Callable
from typing import Any

import msgspec

from plimsoll.actors.replies import Finished
from plimsoll.engine.protocol import Usage
from plimsoll.errors import BadRequest, ContextTooLong, PlimsollError, QueueFull
from plimsoll.http.answer import WholeAnswer
from plimsoll.http.endpoint import AnswerEncoder
from plimsoll.http.openai.responses.items import Event, How, Output, whole_output

Body = dict[str, Any]


class ResponseEncoder(AnswerEncoder):
    """Responses; ``started`` is the response object before it has anything, ``keep`` gets it when it has ended."""

    def __init__(self, started: Body, how: How, *, scored: bool, keep: Callable[[Body], None]) -> None:
        self._keep = keep
        self._started = started
        self._how = how
        self._output = Output(how, scored=scored)
        self._number = 0

    def events(self, index: int, batch: list[Any]) -> bytes:  # noqa: ARG002 - there is only one answer
        events = self._output.add(batch)
        if batch and isinstance(batch[-1], Finished):
            ending = batch[-1]
            status = _status(ending.reason)
            events += self._output.close(status)
            usage = _usage(ending.usage, self._output.reasoning_tokens)
            events.append(_lifecycle(status, self._kept(status, self._output.items, usage)))
        return self._numbered(events)

    def failure(self, error: PlimsollError) -> bytes:
        """The event of a response that failed, with the items that it has; this API has one for that."""
        told = {"code": _failure_code(error), "message": error.message, "type": error.code, "param": error.param}
        events = self._output.close("incomplete", failed=True)
        body = _ended(self._started, "failed", self._output.items, None) | {"error": told}
        return self._numbered([*events, _lifecycle("failed", body)])

    def whole(self, answers: list[WholeAnswer]) -> Body:
        (answer,) = answers
        status = _status(answer.reason)
        usage = _usage(answer.usage, answer.reasoning_tokens)
        return self._kept(status, whole_output(answer, status, self._how), usage)

    def _kept(self, status: str, output: list[Body], usage: Body) -> Body:
        ended = _ended(self._started, status, output, usage)
        self._keep(ended)
        return ended

    def _numbered(self, events: list[Event]) -> bytes:
        if events and self._number == 0:
            events = [_lifecycle("created", self._started), _lifecycle("in_progress", self._started), *events]
        out = b""
        for event in events:
            event["sequence_number"] = self._number
            self._number += 1
            out += b"event: " + str(event["type"]).encode() + b"\ndata: " + msgspec.json.encode(event) + b"\n\n"
        return out


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
    """One of the codes that OpenAI defines for a failed response; ``type`` has this server's own code."""
    if isinstance(error, ContextTooLong):
        return error.code  # Codex makes its conversation shorter then, and gives up at any other
    if isinstance(error, BadRequest):
        return "invalid_prompt"
    return "rate_limit_exceeded" if isinstance(error, QueueFull) else "server_error"
