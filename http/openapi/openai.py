"""OpenAI's endpoints, for the OpenAPI document."""

from typing import Any, Literal

from msgspec import UNSET, UnsetType

from plimsoll.http.openai import completions, embeddings, request, rerank
from plimsoll.http.openai.responses import routes as responses
from plimsoll.http.openapi.responses import Response, ResponseEvent
from plimsoll.http.openapi.schema import SSE, Content, Operation, Parameter, Told, json_of

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


class CustomName(Told):
    name: str
    input: str


class Called(Told):
    """With ``function`` or, for a custom tool, with ``custom``."""

    id: str
    type: Literal["function", "custom"]
    function: CalledName | UnsetType = UNSET
    custom: CustomName | UnsetType = UNSET


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


class CustomPart(Told):
    name: str | UnsetType = UNSET
    input: str | UnsetType = UNSET


class CallPart(Told):
    index: int
    function: CalledPart | UnsetType = UNSET
    custom: CustomPart | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: Literal["function", "custom"] | UnsetType = UNSET


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
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
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


class RankedDocument(Told):
    text: str


class RankedResult(Told):
    """``index`` is the document's place in the request; ``relevance_score`` is from 0 to 1."""

    index: int
    relevance_score: float
    document: RankedDocument | UnsetType = UNSET


class Ranking(Told):
    id: str
    model: str
    results: list[RankedResult]
    usage: EmbeddingUsage


_FAILS = (507,)
MODEL = Parameter("model", "A model's name; it may hold slashes.")
_HI = [{"role": "user", "content": "What is the capital of France?"}]


def _answers(
    path: str, about: str, body: type, forms: tuple[type, type], example: dict[str, Any], *, last: str | None = "[DONE]"
) -> Operation:
    whole, event = forms
    return Operation(
        path=path,
        about=f"{about}; with `stream` as server-sent events",
        tag="OpenAI",
        error=Error,
        methods=("post",),
        body=body,
        example={"model": "smollm2-135m"} | example,
        answers={200: (*json_of(whole), Content(SSE, (event, Error), last))},
        errors=_FAILS,
    )


OPERATIONS = (
    _answers(
        "/v1/chat/completions",
        "Answer a conversation",
        request.Body,
        (ChatCompletion, ChatChunk),
        {"messages": _HI},
    ),
    _answers(
        "/v1/completions",
        "Go on with a prompt, without the model's template",
        completions.Body,
        (TextCompletion, TextCompletion),
        {"prompt": "The capital of France is"},
    ),
    _answers(
        "/v1/responses",
        "Answer items with items",
        responses.Body,
        (Response, ResponseEvent),
        {"input": "What is the capital of France?"},
        last=None,
    ),
    Operation(
        path="/v1/embeddings",
        about="Turn texts into vectors",
        tag="OpenAI",
        error=Error,
        methods=("post",),
        body=embeddings.Body,
        example={"model": "all-minilm-l6-v2", "input": "a ship"},
        answers={200: json_of(Embeddings)},
        errors=_FAILS,
    ),
    *(
        Operation(
            path=path,
            about="Order documents by how well each answers a query",
            tag="OpenAI",
            error=Error,
            methods=("post",),
            body=rerank.Body,
            example={"model": "bge-reranker", "query": "a ship", "documents": ["a vessel", "an egg"]},
            answers={200: json_of(Ranking)},
            errors=_FAILS,
        )
        for path in rerank.PATHS
    ),
)
