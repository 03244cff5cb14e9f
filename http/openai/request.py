"""The body of a chat completion, and what the engine is asked for."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from plimsoll.engine.protocol import ChatRequest, Format
from plimsoll.http.body import check_free, refuse, shown
from plimsoll.http.body import decode as decode  # noqa: PLC0414 - other modules know it from here
from plimsoll.http.openai import params, tools
from plimsoll.http.openai.params import Effort, Tokens, WithChoices
from plimsoll.http.openai.tools import CalledTool, ResponseFormat, ToolBody

# What the engine itself says to the template.
_OWN_KWARGS = frozenset({"messages", "conversation", "tools", "chat_template", "tokenize", "add_generation_prompt"})


class Part(msgspec.Struct):
    type: str
    text: str | None = None


class Message(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[CalledTool] | None = None
    reasoning_content: str | None = None


class Body(WithChoices, kw_only=True):
    """A chat completion; null means the default everywhere, unknown keys are ignored."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[ToolBody] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    functions: list[Any] | None = None
    function_call: Any = None


ALLOWED = (
    params.ALLOWED
    | tools.ALLOWED
    | {
        "messages": "a list of one or more messages",
        "messages[].role": "system, developer, user, assistant or tool",
        "messages[].content": "a string, a list of text parts or (assistant only) null",
        "logprobs": "true or false",
        "functions": "left out: use tools for it",
        "chat_template_kwargs": 'an object like {"enable_thinking": false}',
    }
)
decoder = msgspec.json.Decoder(Body)


def chat_request(body: Body) -> ChatRequest:
    """What the engine gets. Raises ``BadRequest`` for what the structs can't tell, such as content that is no text."""
    _refuse_deprecated(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise refuse("top_logprobs", "is set, but logprobs is not true")
    thinking = params.thinking(body.reasoning_effort)
    thinking["template_kwargs"] = thinking.get("template_kwargs", {}) | _template_kwargs(body)
    offered = tuple(tool.function.tool() for tool in body.tools or ())
    tools.check(offered, "tools[{}].function.name")
    return ChatRequest(
        messages=[_message(message, f"messages[{index}]") for index, message in enumerate(body.messages)],
        sampling=body.sampling(),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        stop=body.stops(),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        format=_format(body.response_format),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        **tools.choose(body.tool_choice, offered),
        **thinking,
    )


def _refuse_deprecated(body: Body) -> None:
    for name, instead in (("functions", "tools"), ("function_call", "tool_choice")):
        if getattr(body, name):
            raise refuse(name, f"is not supported any more; use {instead} for it")


def _format(given: ResponseFormat | None) -> Format | None:
    if given is None:
        return None
    schema = given.json_schema
    param = "response_format.json_schema" + (".schema" if schema else "")
    return tools.answer_format(given.type, schema.schema if schema else None, param)


def _template_kwargs(body: Body) -> dict[str, Any]:
    given = body.chat_template_kwargs or {}
    for name in _OWN_KWARGS & given.keys():
        raise refuse(f"chat_template_kwargs.{name}", "is set by the server and can't be given")
    check_free(given, "chat_template_kwargs")
    return given


def _message(message: Message, path: str) -> dict[str, Any]:
    # Chat templates know system and not developer, which is OpenAI's newer word for it.
    plain: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    plain["content"] = _text(message, path)
    for name in ("name", "tool_call_id", "reasoning_content"):
        if (value := getattr(message, name)) is not None:
            plain[name] = value
    if message.tool_calls is not None:
        plain["tool_calls"] = msgspec.to_builtins(message.tool_calls)
    return plain


def _text(message: Message, path: str) -> str:
    content = message.content
    if isinstance(content, str):
        return content
    if content is None:
        if message.role == "assistant":
            return ""
        raise refuse(f"{path}.content", f"is missing, but must be {ALLOWED['messages[].content']}")
    for index, part in enumerate(content):
        where = f"{path}.content[{index}]"
        if part.type != "text":
            raise refuse(f"{where}.type", f"is {shown(part.type)}, but only text parts are supported")
        if part.text is None:
            raise refuse(f"{where}.text", "is missing, but must be a string")
    return "\n".join(part.text or "" for part in content)
