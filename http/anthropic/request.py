"""The body of Anthropic's messages, checked, and its translation into the engine's request."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from plimsoll.engine.protocol import ChatRequest, Format, Sampling, Tool
from plimsoll.errors import BadRequest
from plimsoll.http.anthropic.blocks import Message, plain_messages, system_text
from plimsoll.http.anthropic.client_tools import ToolBody, offered
from plimsoll.http.anthropic.edits import ContextManagement, without_cleared_thoughts
from plimsoll.http.body import MAX_STOP_CHARS, MAX_STOPS, check_free, shown
from plimsoll.http.content import Part

_TOKENS_MAX = 2**31 - 1
_Stop = Annotated[str, Meta(max_length=MAX_STOP_CHARS)]


class ToolChoice(msgspec.Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Meta(ge=0, le=_TOKENS_MAX)] | None = None


class OutputFormat(msgspec.Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct):
    format: OutputFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class Body(msgspec.Struct, kw_only=True):
    """Null means the default everywhere; unknown keys (metadata, cache_control, service_tier) are ignored."""

    model: str = ""
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1, le=_TOKENS_MAX)] | None = None
    system: str | list[Part] | None = None
    stream: bool | None = None
    stop_sequences: Annotated[list[_Stop], Meta(max_length=MAX_STOPS)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=_TOKENS_MAX)] | None = None
    tools: list[ToolBody] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    context_management: ContextManagement | None = None


ALLOWED = {
    "model": "a model's name",
    "messages": "a list of one or more messages",
    "messages[].role": "user, assistant or system",
    "messages[].content": "a string or a list of content blocks",
    "system": "a string or a list of text blocks",
    "stop_sequences": f"a list of up to {MAX_STOPS} strings",
    "stop_sequences[]": f"a string of up to {MAX_STOP_CHARS} characters",
    "stream": "true or false",
    "max_tokens": f"an integer from 1 to {_TOKENS_MAX}",
    "temperature": "a number from 0 to 1",
    "top_p": "a number from 0 to 1",
    "top_k": f"an integer from 0 or -1 (off) to {_TOKENS_MAX}",
    "tools": "a list of tools with name, description and input_schema",
    "tools[].name": "a tool's name",
    "tools[].input_schema": "a JSON schema",
    "tool_choice": 'an object like {"type": "auto"}',
    "tool_choice.type": "auto, any, tool or none",
    "output_config": "an object",
    "output_config.effort": "low, medium, high, xhigh or max",
    "context_management": 'an object like {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}',
    "output_config.format": 'an object like {"type": "json_schema", "schema": {}}',
    "output_config.format.type": "json_schema",
    "output_config.format.schema": "a JSON schema",
    "thinking": 'an object like {"type": "enabled"}',
    "thinking.type": "enabled, disabled or adaptive",
    "thinking.budget_tokens": f"an integer from 0 to {_TOKENS_MAX}",
}
decoder = msgspec.json.Decoder(Body)


def chat_request(body: Body) -> ChatRequest:
    """The engine's request for a body. Raises ``BadRequest`` for a body that can't be translated."""
    if body.max_tokens is None:
        raise BadRequest(f"max_tokens is missing, but must be an integer from 1 to {_TOKENS_MAX}", param="max_tokens")
    sampled: dict[str, Any] = {name: getattr(body, name) for name in ("temperature", "top_p", "top_k")}
    form = body.output_config.format if body.output_config else None
    if form:
        check_free(form.schema, "output_config.format.schema")
    return msgspec.structs.replace(
        count_request(body),
        sampling=Sampling(**{name: value for name, value in sampled.items() if value is not None}),
        given=tuple(name for name, value in sampled.items() if value is not None),
        max_tokens=body.max_tokens,
        stop=tuple(text for text in body.stop_sequences or () if text),
        format=Format(form.schema) if form else None,
        count_only=False,
    )


def count_request(body: Body) -> ChatRequest:
    """The engine's request that only counts the prompt's tokens. Raises as ``chat_request`` does."""
    tools, told = offered(body.tools or [], body.messages)
    system = system_text(body.system)
    messages = without_cleared_thoughts(plain_messages(body.messages, told), body.context_management)
    choice = body.tool_choice
    effort = body.output_config.effort if body.output_config else None
    return ChatRequest(
        messages=[*([{"role": "system", "content": system}] if system else []), *messages],
        tools=tools,
        template_kwargs={"reasoning_effort": effort} if effort else {},
        tool_choice=_choice(choice, tools) if choice else "auto",
        parallel_tool_calls=not (choice and choice.disable_parallel_tool_use),
        thinking=_thinking(body.thinking),
        thinking_budget=body.thinking.budget_tokens if body.thinking else None,
        continue_last=body.messages[-1].role == "assistant",
        count_only=True,
    )


def _choice(choice: ToolChoice, tools: tuple[Tool, ...]) -> str:
    if choice.type in ("any", "tool") and not tools:
        raise BadRequest(f"tool_choice is {choice.type}, but there are no tools", param="tool_choice")
    if choice.type != "tool":
        return {"auto": "auto", "any": "required", "none": "none"}[choice.type]
    if choice.name not in {tool.name for tool in tools}:
        what = "is missing" if choice.name is None else f"is {shown(choice.name)}"
        raise BadRequest(f"tool_choice.name {what}, but must be the name of one of the tools", param="tool_choice.name")
    return choice.name or ""


def _thinking(thinking: Thinking | None) -> bool | None:
    # Adaptive leaves the choice to the model, as a request without the parameter does here.
    if thinking is None or thinking.type == "adaptive":
        return None
    return thinking.type == "enabled"
