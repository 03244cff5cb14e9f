"""Ollama's messages and tools, and what chat templates read of them."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from plimsoll.errors import BadRequest
from plimsoll.http.body import check_free


class CalledFunction(msgspec.Struct):
    name: str
    arguments: dict[str, Any] = {}


class ToolCall(msgspec.Struct):
    function: CalledFunction
    id: str | None = None


class Message(msgspec.Struct):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class Function(msgspec.Struct):
    name: Annotated[str, Meta(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolBody(msgspec.Struct):
    function: Function
    type: Literal["function"] | None = None


def plain_message(message: Message, path: str) -> dict[str, Any]:
    """The message as chat templates read it. Raises ``BadRequest`` for images."""
    refuse_images(message.images, f"{path}.images")
    plain: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.thinking:
        plain["reasoning_content"] = message.thinking
    if message.tool_name:
        plain["name"] = message.tool_name
    if message.tool_call_id:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        for index, call in enumerate(message.tool_calls):
            check_free(call.function.arguments, f"{path}.tool_calls[{index}].function.arguments")
        plain["tool_calls"] = [
            {"id": call.id or f"call_{index}", "type": "function", "function": msgspec.to_builtins(call.function)}
            for index, call in enumerate(message.tool_calls)
        ]
    return plain


def refuse_images(images: list[Any] | None, path: str) -> None:
    """Raise ``BadRequest`` where there are any."""
    if images:
        raise BadRequest(f"{path}: images are not supported here; the models read text only", param=path)
