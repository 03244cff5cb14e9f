"""What Anthropic's endpoints answer, for the OpenAPI document."""

from typing import Any, Literal

from msgspec import UNSET, UnsetType

from plimsoll.http.anthropic import request
from plimsoll.http.openapi.schema import SSE, Content, Operation, Told, json_of


class AnthropicErrorDetail(Told):
    type: str
    message: str


class AnthropicError(Told, tag="error"):
    """Also an event that ends a stream."""

    error: AnthropicErrorDetail


class TextContent(Told, tag="text"):
    text: str


class ThinkingContent(Told, tag="thinking"):
    thinking: str
    signature: str


class ToolUse(Told, tag="tool_use"):
    id: str
    name: str
    input: Any


_Content = TextContent | ThinkingContent | ToolUse
_StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class MessageUsage(Told):
    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int


class AnthropicMessage(Told, tag="message"):
    id: str
    role: Literal["assistant"]
    model: str
    content: list[_Content]
    stop_reason: _StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class AnthropicEnding(Told):
    stop_reason: _StopReason
    stop_sequence: str | None


class AnthropicDelta(Told):
    type: Literal["text_delta", "thinking_delta", "input_json_delta"]
    text: str | UnsetType = UNSET
    thinking: str | UnsetType = UNSET
    partial_json: str | UnsetType = UNSET


class MessageStart(Told, tag="message_start"):
    message: AnthropicMessage


class ContentBlockStart(Told, tag="content_block_start"):
    index: int
    content_block: _Content


class ContentBlockDelta(Told, tag="content_block_delta"):
    index: int
    delta: AnthropicDelta


class ContentBlockStop(Told, tag="content_block_stop"):
    index: int


class MessageDelta(Told, tag="message_delta"):
    delta: AnthropicEnding
    usage: MessageUsage


class MessageStop(Told, tag="message_stop"):
    pass


class Ping(Told, tag="ping"):
    pass


class TokenCount(Told):
    input_tokens: int


_EVENTS = (
    MessageStart,
    ContentBlockStart,
    ContentBlockDelta,
    ContentBlockStop,
    MessageDelta,
    MessageStop,
    Ping,
    AnthropicError,
)
_EXAMPLE = {"model": "smollm2-135m", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
OPERATIONS = (
    Operation(
        path="/v1/messages",
        about="Answer a conversation; with `stream` as server-sent events",
        tag="Anthropic",
        error=AnthropicError,
        methods=("post",),
        body=request.Body,
        example=_EXAMPLE | {"max_tokens": 64},
        answers={200: (*json_of(AnthropicMessage), Content(SSE, _EVENTS))},
        errors=(507,),
    ),
    Operation(
        path="/v1/messages/count_tokens",
        about="Count the prompt's tokens with the model's own tokenizer, which loads it",
        tag="Anthropic",
        error=AnthropicError,
        methods=("post",),
        body=request.Body,
        example=_EXAMPLE,
        answers={200: json_of(TokenCount)},
        errors=(507,),
    ),
)
