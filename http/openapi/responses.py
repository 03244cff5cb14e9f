"""The response object of OpenAI's responses and the events it grows by, for the OpenAPI document."""

from typing import Any, Literal

from msgspec import UNSET, UnsetType

from plimsoll.http.openapi.schema import Told


class OutputScore(Told):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[dict[str, Any]]


class OutputText(Told, tag="output_text"):
    text: str
    annotations: list[Any]
    logprobs: list[OutputScore]


class ReasoningText(Told, tag="reasoning_text"):
    text: str


_Status = Literal["in_progress", "completed", "incomplete"]


class MessageItem(Told, tag="message"):
    id: str
    role: Literal["assistant"]
    status: _Status
    content: list[OutputText]


class SummaryText(Told, tag="summary_text"):
    text: str


class ReasoningItem(Told, tag="reasoning"):
    id: str
    summary: list[SummaryText]
    content: list[ReasoningText]
    status: _Status


class CallItem(Told, tag="function_call"):
    id: str
    status: _Status
    call_id: str
    name: str
    arguments: str
    namespace: str | UnsetType = UNSET


class CustomCallItem(Told, tag="custom_tool_call"):
    """A call of a custom tool: its input is a free text."""

    id: str
    status: _Status
    call_id: str
    name: str
    input: str
    namespace: str | UnsetType = UNSET


class ShellActionTold(Told, omit_defaults=True):
    type: Literal["exec"]
    command: list[str]
    env: dict[str, str]
    timeout_ms: int | UnsetType = UNSET
    working_directory: str | UnsetType = UNSET
    user: str | UnsetType = UNSET


class ShellCallItem(Told, tag="local_shell_call"):
    """A command that the client is to run."""

    id: str
    status: _Status
    call_id: str
    action: ShellActionTold


OutputItem = MessageItem | ReasoningItem | CallItem | CustomCallItem | ShellCallItem


class Incomplete(Told):
    reason: str


class Failure(Told):
    """``type`` is this server's own code."""

    code: str
    message: str
    type: str
    param: str | None


class EffortTold(Told):
    effort: str | None
    summary: str | None


class TextTold(Told):
    format: dict[str, Any]


class InputDetails(Told):
    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(Told):
    reasoning_tokens: int


class ResponseUsage(Told):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Response(Told):
    """With the request's parameters as they hold."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    background: bool
    error: Failure | None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    conversation: dict[str, str] | None
    reasoning: EffortTold
    store: bool
    temperature: float
    text: TextTold
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_p: float
    truncation: str
    usage: ResponseUsage | None
    user: str | None


class ResponseEvent(Told):
    """One numbered event; which fields it has depends on its type."""

    type: str
    sequence_number: int
    response: Response | UnsetType = UNSET
    output_index: int | UnsetType = UNSET
    item: OutputItem | UnsetType = UNSET
    item_id: str | UnsetType = UNSET
    content_index: int | UnsetType = UNSET
    summary_index: int | UnsetType = UNSET
    part: OutputText | ReasoningText | SummaryText | UnsetType = UNSET
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    logprobs: list[OutputScore] | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET
    input: str | UnsetType = UNSET
