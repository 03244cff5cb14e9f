"""The body of a chat completion, and its translation into the engine's request."""

import functools
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from plimsoll.engine.protocol import ChatRequest
from plimsoll.http.body import check_free, refuse
from plimsoll.http.content import Part, text_of
from plimsoll.http.openai import answer_form, params, tools
from plimsoll.http.openai.answer_form import WithForm, form_of
from plimsoll.http.openai.params import Effort, Tokens
from plimsoll.http.openai.tools import INPUT, CalledTool, Offered, ToolBody, of_chat

# Template arguments that the engine itself sets.
_OWN_KWARGS = frozenset({"messages", "conversation", "tools", "chat_template", "tokenize", "add_generation_prompt"})
# Chat templates know system and not developer, which is OpenAI's newer word for it.
_ROLES = {"developer": "system", "function": "tool"}
_THOUGHTS = ("thinking", "reasoning", "reasoning_text")


class Message(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[CalledTool] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Body(WithForm, kw_only=True, dict=True):
    """A chat completion; null means the default everywhere, unknown keys are ignored."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[ToolBody] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    reasoning_budget: Annotated[int, Meta(ge=0)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    functions: list[Any] | None = None
    function_call: Any = None

    @functools.cached_property
    def offered(self) -> Offered:
        """The tools that the model is offered. Raises ``BadRequest``."""
        return of_chat(self.tools or ())


ALLOWED = (
    params.ALLOWED
    | tools.ALLOWED
    | answer_form.ALLOWED
    | {
        "messages": "a list of one or more messages",
        "messages[].role": "system, developer, user, assistant, tool or function",
        "messages[].content": "a string, a list of parts or null",
        "logprobs": "true or false",
        "functions": "left out: use tools for it",
        "reasoning_budget": "an integer of 0 or more",
        "continue_final_message": "true or false",
        "add_generation_prompt": "true or false",
        "chat_template_kwargs": 'an object like {"enable_thinking": false}',
    }
)
decoder = msgspec.json.Decoder(Body)


def chat_request(body: Body) -> ChatRequest:
    """The engine's request for a body. Raises ``BadRequest`` for faults that the structs can't find."""
    _refuse_deprecated(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise refuse("top_logprobs", "is set, but logprobs is not true")
    thinking = params.thinking(body.reasoning_effort)
    if body.chat_template_kwargs:
        thinking["template_kwargs"] = thinking.get("template_kwargs", {}) | _template_kwargs(body.chat_template_kwargs)
    return ChatRequest(
        messages=messages(body.messages),
        sampling=body.sampling(),
        max_tokens=params.most_tokens(body.max_completion_tokens or body.max_tokens),
        stop=body.stops(),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        format=form_of(body),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        continue_last=_continues(body),
        thinking_budget=body.reasoning_budget,
        given=body.given(),
        **tools.choose(body.tool_choice, body.offered.tools),
        **thinking,
    )


def _refuse_deprecated(body: Body) -> None:
    if body.functions or body.function_call:
        name, instead = ("functions", "tools") if body.functions else ("function_call", "tool_choice")
        raise refuse(name, f"is not supported any more; use {instead} for it")


def _continues(body: Body) -> bool:
    """Whether the answer continues the last message: if that is text of the assistant and the client did not say no."""
    last = body.messages[-1]
    goes_on = body.continue_final_message
    if goes_on and last.role != "assistant":
        raise refuse("continue_final_message", "is true, but the last message is not the assistant's")
    if goes_on and body.add_generation_prompt:
        raise refuse("add_generation_prompt", "is true, but so is continue_final_message: an answer can't do both")
    if goes_on is None:
        is_text = last.role == "assistant" and bool(last.content) and not last.tool_calls
        goes_on = is_text and body.add_generation_prompt is not True
    if not goes_on and body.add_generation_prompt is False:
        raise refuse("add_generation_prompt", "is false, but only an assistant's last message can be gone on with")
    return goes_on


def _template_kwargs(given: dict[str, Any]) -> dict[str, Any]:
    for name in _OWN_KWARGS & given.keys():
        raise refuse(f"chat_template_kwargs.{name}", "is set by the server and can't be given")
    check_free(given, "chat_template_kwargs")
    return given


def messages(given: list[Message]) -> list[dict[str, Any]]:
    """The messages as chat templates read them. Raises ``BadRequest`` for parts and calls that are not whole."""
    answered = max((index + 1 for index, one in enumerate(given) if one.role == "assistant"), default=0)
    return [_message(one, f"messages[{index}]", asked=index >= answered) for index, one in enumerate(given)]


def _message(message: Message, path: str, *, asked: bool) -> dict[str, Any]:
    role = _ROLES.get(message.role, message.role)
    parts, thoughts = message.content, message.reasoning_content or message.reasoning
    if role == "assistant" and isinstance(parts, list):
        thoughts = thoughts or "\n".join(filter(None, map(_thought, parts)))
        parts = [part for part in parts if part.type not in _THOUGHTS]
    plain: dict[str, Any] = {"role": role}
    plain["content"] = text_of(parts, f"{path}.content", asked=asked and role == "user")
    for name in ("name", "tool_call_id"):
        if (value := getattr(message, name)) is not None:
            plain[name] = value
    if thoughts:
        plain["reasoning_content"] = thoughts
    if message.tool_calls is not None:
        calls = enumerate(message.tool_calls)
        plain["tool_calls"] = [_call(call, index, f"{path}.tool_calls[{index}]") for index, call in calls]
    return plain


def _thought(part: Part) -> str:
    if part.type not in _THOUGHTS:
        return ""
    told = part.thinking or part.reasoning or part.text
    return told if isinstance(told, str) else ""


def _call(call: CalledTool, index: int, path: str) -> dict[str, Any]:
    if call.function is not None:
        check_free(call.function.arguments, f"{path}.function.arguments")
        function = msgspec.to_builtins(call.function)
    elif call.custom is not None:
        function = {"name": call.custom.name, "arguments": {INPUT: call.custom.input or ""}}
    else:
        raise refuse(f"{path}.function", 'is missing, but must be an object like {"name": "f", "arguments": "{}"}')
    return {"id": call.id or f"call_{index}", "type": "function", "function": function}
