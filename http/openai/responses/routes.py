"""OpenAI's responses; ``store`` keeps the newest, so that a request may go on with one of them."""

import contextlib
import functools
import time
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from plimsoll.engine.protocol import ChatRequest
from plimsoll.http.app_state import AppState
from plimsoll.http.body import refuse
from plimsoll.http.endpoint import Endpoint, RequestContext
from plimsoll.http.limits.body_budget import HttpRequest
from plimsoll.http.openai import answer_form, params, tools
from plimsoll.http.openai.answer_form import TextFormat, answer_format
from plimsoll.http.openai.params import Common, Effort, Tokens
from plimsoll.http.openai.responses import input as items_in
from plimsoll.http.openai.responses.answers import ResponseEncoder
from plimsoll.http.openai.responses.items import How
from plimsoll.http.openai.responses.kept_responses import conversation_id, owner_of, whole_input
from plimsoll.http.openai.tools import FlatTool, Offered, of_response
from plimsoll.http.response_store import UnknownResponse

_LOGPROBS = "message.output_text.logprobs"


class Reasoning(msgspec.Struct):
    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed", "none"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None

    def asks_for_summary(self) -> bool:
        """Whether thoughts are sent as a summary, the only form of them that many clients show."""
        return (self.summary or self.generate_summary) not in (None, "none")


class Text(msgspec.Struct):
    format: TextFormat | None = None


class Body(Common, kw_only=True, dict=True):
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
    store: bool | None = None

    @functools.cached_property
    def offered(self) -> Offered:
        """The tools that the model is offered. Raises ``BadRequest``."""
        return of_response(self.tools or ())


ALLOWED = (
    params.ALLOWED
    | tools.ALLOWED
    | answer_form.ALLOWED
    | items_in.ALLOWED
    | {
        "tools": 'a list of tools like {"type": "function", "name": "f", "parameters": {}}',
        "metadata": "an object of strings",
        "instructions": "a string",
        "include": "a list of strings",
        "text": 'an object like {"format": {"type": "text"}}',
        "text.format": 'an object like {"type": "text"}',
        "reasoning": 'an object like {"effort": "low"}',
        "reasoning.summary": "auto, concise, detailed or none",
        "background": "false",
        "previous_response_id": "a response's id",
        "store": "true or false",
    }
)
decoder = msgspec.json.Decoder(Body)


def chat_request(body: Body) -> ChatRequest:
    """The engine's request for a body. Raises ``BadRequest``."""
    if body.prompt:
        raise refuse("prompt", "can't be used: no prompts are stored here, send its text as instructions")
    if body.background:
        raise refuse("background", "can't be true: an answer is given to the request that asks for it")
    form = body.text.format if body.text else None
    logprobs = body.top_logprobs or (0 if _LOGPROBS in (body.include or ()) else None)
    messages = items_in.messages(body.input, body.instructions, body.offered)
    return ChatRequest(
        messages=messages,
        sampling=body.sampling(),
        given=body.given(),
        max_tokens=params.most_tokens(body.max_output_tokens),
        stop=body.stops(),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        format=answer_format(form.type, form.schema, "text.format.schema") if form else None,
        logprobs=logprobs,
        continue_last=items_in.is_begun_answer(messages[-1]),
        **tools.choose(body.tool_choice, body.offered.tools),
        **params.thinking(body.reasoning.effort if body.reasoning else None),
    )


def _resolve(state: AppState, request: HttpRequest, body: Body) -> Body:
    """The body with the items that it refers to. Raises ``UnknownResponse`` for those that are not kept."""
    if body.previous_response_id or body.conversation or _has_references(body.input):
        return msgspec.structs.replace(body, input=whole_input(state.responses, owner_of(request), body))
    return body


def _has_references(given: str | list[items_in.Item]) -> bool:
    return not isinstance(given, str) and any(item.type == "item_reference" for item in given)


def _keep(context: RequestContext, ended: dict[str, Any]) -> None:
    """Store a response that has ended, and what it adds to its conversation."""
    body: Body = context.body
    store, owner = context.state.responses, owner_of(context.request)
    conversation = conversation_id(body.conversation)
    if not store.is_on or (body.store is False and not conversation):
        return
    given = body.input
    new = [items_in.Item(role="user", content=given)] if isinstance(given, str) else given
    items = [*new, *msgspec.convert(ended["output"], list[items_in.Item])]
    if body.store is not False:
        store.put(ended["id"], owner, items, ended)
    if conversation:
        with contextlib.suppress(UnknownResponse):  # the store has dropped it meanwhile to make room
            store.put(conversation, owner, items, store.get(conversation, owner).body)


def started_body(body: Body, answer_id: str, *, kept: bool = False) -> dict[str, Any]:
    """The response object at its start, with the parameters that apply to the request."""
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
        "previous_response_id": body.previous_response_id,
        "conversation": {"id": name} if (name := conversation_id(body.conversation)) else None,
        "reasoning": {
            "effort": body.reasoning.effort if body.reasoning else None,
            "summary": body.reasoning.summary if body.reasoning else None,
        },
        "store": kept,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": text},
        "tool_choice": body.tool_choice or "auto",
        "tools": [msgspec.to_builtins(tool) for tool in body.tools or ()],
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }


def _encoder(context: RequestContext) -> ResponseEncoder:
    (prompt,) = context.prompts
    scored = isinstance(prompt, ChatRequest) and prompt.logprobs is not None
    body: Body = context.body
    how = How(body.offered.known, summarised=bool(body.reasoning and body.reasoning.asks_for_summary()))
    kept = context.state.responses.is_on and body.store is not False
    started = started_body(body, context.id, kept=kept)
    return ResponseEncoder(started, how, scored=scored, keep=lambda ended: _keep(context, ended))


RESPONSES = Endpoint(
    api="openai",
    decoder=decoder,
    allowed=ALLOWED,
    prompts=lambda body: [chat_request(body)],
    resolve=_resolve,
    text="input",
    encoder=_encoder,
)
