"""OpenAI's responses. Nothing is stored: each request brings the whole conversation."""

import time
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from sanic import HTTPResponse

from plimsoll.engine.protocol import ChatRequest
from plimsoll.http.body import read, refuse
from plimsoll.http.errors import respond
from plimsoll.http.front import AnyRequest, App, Front
from plimsoll.http.limits.request import check_chat
from plimsoll.http.openai import params, tools
from plimsoll.http.openai.params import Common, Effort, Tokens
from plimsoll.http.openai.responses import input as items_in
from plimsoll.http.openai.responses.events import Events, response_body
from plimsoll.http.openai.tools import FlatTool, TextFormat
from plimsoll.http.sse import Stream
from plimsoll.http.stream import Answer
from plimsoll.http.whole import gather

_LOGPROBS = "message.output_text.logprobs"


class Reasoning(msgspec.Struct):
    effort: Effort | None = None


class Text(msgspec.Struct):
    format: TextFormat | None = None


class Body(Common, kw_only=True):
    """Null means the default everywhere; unknown keys are ignored."""

    input: str | Annotated[list[items_in.Item], Meta(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    tools: list[FlatTool] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    include: list[str] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    metadata: dict[str, str] | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None


_STORED = ("previous_response_id", "conversation", "prompt")
ALLOWED = (
    params.ALLOWED
    | tools.ALLOWED
    | items_in.ALLOWED
    | {
        "tools": 'a list of tools like {"type": "function", "name": "f", "parameters": {}}',
        "metadata": "an object of strings",
        "instructions": "a string",
        "include": "a list of strings",
        "text": 'an object like {"format": {"type": "text"}}',
        "text.format": 'an object like {"type": "text"}',
        "reasoning": 'an object like {"effort": "low"}',
        "background": "false",
        "previous_response_id": "left out",
    }
)
decoder = msgspec.json.Decoder(Body)


def add_routes(app: App, front: Front) -> None:
    """Register this module's endpoint."""
    api = _Responses(front)
    app.add_route(api.responses, "/v1/responses", methods=["POST"], name="responses")


class _Responses:
    def __init__(self, front: Front) -> None:
        self._front = front

    async def responses(self, request: AnyRequest) -> HTTPResponse | None:
        body: Body = read(request, decoder, ALLOWED)
        asked = check_chat(chat_request(body), self._front.config.limits, "input")
        self._front.catalog.find(body.model)
        record = self._front.recorder.begin("openai", body.model)
        answer = Answer(self._front.supervisor, body.model, asked, record)
        started = started_body(body, answer.id)
        with self._front.running():
            if body.stream:
                form = Events(started, scored=asked.logprobs is not None)
                await Stream(request, form, self._front.config.server.keepalive).run(answer)
                return None
            (whole,) = await gather(answer)
            return respond(200, response_body(started, whole))


def chat_request(body: Body) -> ChatRequest:
    """What the engine gets. Raises ``BadRequest``."""
    for name in _STORED:
        if getattr(body, name):
            raise refuse(name, "can't be used: nothing is stored here, send the whole conversation as input")
    if body.background:
        raise refuse("background", "can't be true: nothing is stored here to be fetched later")
    offered = tools.check(tuple(tool.tool() for tool in body.tools or ()), "tools[{}].name")
    form = body.text.format if body.text else None
    logprobs = body.top_logprobs or (0 if _LOGPROBS in (body.include or ()) else None)
    return ChatRequest(
        messages=items_in.messages(body.input, body.instructions),
        sampling=body.sampling(),
        max_tokens=body.max_output_tokens,
        stop=body.stops(),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        format=tools.answer_format(form.type, form.schema, "text.format.schema") if form else None,
        logprobs=logprobs,
        **tools.choose(body.tool_choice, offered),
        **params.thinking(body.reasoning.effort if body.reasoning else None),
    )


def started_body(body: Body, answer_id: str) -> dict[str, Any]:
    """The response object at its start, with the request's parameters as they hold."""
    text = msgspec.to_builtins(body.text.format) if body.text and body.text.format else {"type": "text"}
    return {
        "id": f"resp_{answer_id}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": body.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "store": False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": text},
        "tool_choice": body.tool_choice or "auto",
        "tools": [msgspec.to_builtins(tool) for tool in body.tools or ()],
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }
