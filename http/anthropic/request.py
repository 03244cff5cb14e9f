"""The body of Anthropic's messages, checked, and what the engine gets of it."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from plimsoll.engine.protocol import ChatRequest, Format, Sampling, Tool
from plimsoll.errors import BadRequest
from plimsoll.http.anthropic.blocks import Message, TextBlock, plain_messages, plain_text
from plimsoll.http.body import MAX_STOP_CHARS, MAX_STOPS, check_free, read, shown
from plimsoll.http.front import AnyRequest

_TOKENS_MAX = 2**31 - 1
_Stop = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]


class ToolBody(msgspec.Struct):
    name: Annotated[str, Meta(min_length=1)]
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: str | None = None


class ToolChoice(msgspec.Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct):
    type: Literal["enabled", "disabled", "adaptive"]


class OutputFormat(msgspec.Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct):
    format: OutputFormat | None = None


class Body(msgspec.Struct, kw_only=True):
    """Null means the default everywhere; unknown keys (metadata, cache_control, service_tier) are ignored."""

    model: Annotated[str, Meta(min_length=1)]
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1, le=_TOKENS_MAX)] | None = None
    system: str | list[TextBlock] | None = None
    stream: bool | None = None
    stop_sequences: Annotated[list[_Stop], Meta(max_length=MAX_STOPS)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=_TOKENS_MAX)] | None = None
    tools: list[ToolBody] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


_ALLOWED = {
    "model": "a model's name",
    "messages": "a list of one or more messages",
    "messages[].role": "user, assistant or system",
    "messages[].content": "a string or a list of content blocks",
    "system": "a string or a list of text blocks",
    "stop_sequences": f"a list of up to {MAX_STOPS} strings",
    "stop_sequences[]": f"a string of 1 to {MAX_STOP_CHARS} characters",
    "stream": "true or false",
    "max_tokens": f"an integer from 1 to {_TOKENS_MAX}",
    "temperature": "a number from 0 to 1",
    "top_p": "a number above 0, up to 1",
    "top_k": f"an integer from 0 (off) to {_TOKENS_MAX}",
    "tools": "a list of tools with name, description and input_schema",
    "tools[].name": "a tool's name",
    "tools[].input_schema": "a JSON schema",
    "tool_choice": 'an object like {"type": "auto"}',
    "tool_choice.type": "auto, any, tool or none",
    "output_config": "an object",
    "output_config.format": 'an object like {"type": "json_schema", "schema": {}}',
    "output_config.format.type": "json_schema",
    "output_config.format.schema": "a JSON schema",
    "thinking": 'an object like {"type": "enabled"}',
    "thinking.type": "enabled, disabled or adaptive",
}
_decoder = msgspec.json.Decoder(Body)


def parse(request: AnyRequest) -> Body:
    """The body, checked. Raises ``BadRequest`` naming the parameter and what it may be."""
    body: Body = read(request, _decoder, _ALLOWED)
    return body


def chat_request(body: Body) -> ChatRequest:
    """What the engine gets. Raises ``BadRequest`` for what can't be translated."""
    if body.max_tokens is None:
        raise BadRequest(f"max_tokens is missing, but must be an integer from 1 to {_TOKENS_MAX}", param="max_tokens")
    if body.messages[-1].role == "assistant":
        text = "the last message is the assistant's, but answers are not continued here; end with a user's message"
        raise BadRequest(text, param="messages")
    sampled = {name: getattr(body, name) for name in ("temperature", "top_p", "top_k")}
    form = body.output_config.format if body.output_config else None
    if form:
        check_free(form.schema, "output_config.format.schema")
    return msgspec.structs.replace(
        count_request(body),
        sampling=Sampling(**{name: value for name, value in sampled.items() if value is not None}),
        max_tokens=body.max_tokens,
        stop=tuple(body.stop_sequences or ()),
        format=Format(form.schema) if form else None,
        count_only=False,
    )


def count_request(body: Body) -> ChatRequest:
    """The same for counting the prompt's tokens. Raises ``BadRequest`` as ``chat_request``."""
    tools = tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(body.tools or ()))
    system = plain_text(body.system or "", "system")
    choice = body.tool_choice
    return ChatRequest(
        messages=[*([{"role": "system", "content": system}] if system else []), *plain_messages(body.messages)],
        tools=tools,
        tool_choice=_choice(choice, tools) if choice else "auto",
        parallel_tool_calls=not (choice and choice.disable_parallel_tool_use),
        thinking=_thinking(body.thinking),
        count_only=True,
    )


def _tool(tool: ToolBody, path: str) -> Tool:
    if tool.type not in (None, "custom"):
        text = f"{path}.type is {shown(tool.type)}, but only tools of the client's own (custom) are supported"
        raise BadRequest(text, param=f"{path}.type")
    if tool.input_schema is None:
        raise BadRequest(f"{path}.input_schema is missing, but must be a JSON schema", param=f"{path}.input_schema")
    check_free(tool.input_schema, f"{path}.input_schema")
    return Tool(tool.name, tool.description or "", tool.input_schema)


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
    # Adaptive is the model's own choice, which is what leaving it out means here.
    if thinking is None or thinking.type == "adaptive":
        return None
    return thinking.type == "enabled"
