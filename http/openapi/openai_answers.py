"""The bodies of OpenAI's answers, for the OpenAPI document. Tests hold the server to them: no field more or less."""

from typing import Any, Literal

from msgspec import UNSET, UnsetType

from plimsoll.http.openapi.shape import Told

_Reason = Literal["stop", "length", "tool_calls"]


class ErrorDetail(Told):
    """``memory`` are the figures where memory is at fault."""

    message: str
    type: str
    param: str | None
    code: str
    memory: dict[str, Any] | UnsetType = UNSET


class Error(Told):
    error: ErrorDetail


class TokenScore(Told):
    token: str
    logprob: float
    bytes: list[int]


class TokenChoice(TokenScore):
    top_logprobs: list[TokenScore]


class Scores(Told):
    content: list[TokenChoice]
    refusal: None


class CalledName(Told):
    name: str
    arguments: str


class Called(Told):
    id: str
    type: Literal["function"]
    function: CalledName


class Said(Told):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[Called] | UnsetType = UNSET


class ChatChoice(Told):
    index: int
    message: Said
    logprobs: Scores | None
    finish_reason: _Reason


class PromptDetails(Told):
    cached_tokens: int


class CompletionDetails(Told):
    reasoning_tokens: int


class ChatUsage(Told):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails | UnsetType = UNSET


class _Head(Told):
    id: str
    created: int
    model: str
    system_fingerprint: str


class ChatCompletion(_Head):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: ChatUsage


class CalledPart(Told):
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class CallPart(Told):
    index: int
    function: CalledPart
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class SaidPart(Told):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[CallPart] | UnsetType = UNSET


class ChatPart(Told):
    index: int
    delta: SaidPart
    logprobs: Scores | None
    finish_reason: _Reason | None


class ChatChunk(_Head):
    """One event of a stream; ``usage`` is there when it was asked for, and set in the last one only."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatPart]
    usage: ChatUsage | UnsetType | None = UNSET


class TextScores(Told):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(Told):
    index: int
    text: str
    logprobs: TextScores | None
    finish_reason: _Reason | None


class TextCompletion(_Head):
    """Whole, or one event of a stream."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: ChatUsage | UnsetType | None = UNSET


class Embedding(Told):
    """``embedding`` in base64 is float32, little-endian."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Told):
    prompt_tokens: int
    total_tokens: int


class Embeddings(Told):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Model(Told):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(Told):
    object: Literal["list"]
    data: list[Model]
