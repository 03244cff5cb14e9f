"""What Ollama's endpoints answer, for the OpenAPI document."""

from typing import Any, Literal

from msgspec import UNSET, UnsetType

from plimsoll.http.ollama import create, models, request
from plimsoll.http.ollama.answers import NDJSON
from plimsoll.http.openapi.schema import Content, Operation, Parameter, Told, json_of


class OllamaError(Told):
    """Also a line that ends a stream."""

    error: str


class OllamaToken(Told):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: "list[OllamaToken] | UnsetType" = UNSET


class OllamaCalled(Told):
    name: str
    arguments: Any


class OllamaCall(Told):
    function: OllamaCalled


class OllamaSaid(Told):
    role: Literal["assistant"]
    content: str
    thinking: str | UnsetType = UNSET
    tool_calls: list[OllamaCall] | UnsetType = UNSET


class _Line(Told):
    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length", "load", "unload"] | UnsetType = UNSET
    logprobs: list[OllamaToken] | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET


class OllamaChat(_Line, kw_only=True):
    """Whole, or one line of a stream; the last one, with ``done``, has the figures, durations in ns."""

    message: OllamaSaid


class OllamaGenerated(_Line, kw_only=True):
    """The same of generate."""

    response: str
    thinking: str | UnsetType = UNSET
    tool_calls: list[OllamaCall] | UnsetType = UNSET


class OllamaVectors(Told):
    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaVector(Told):
    embedding: list[float]


class Details(Told):
    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class OllamaModel(Told):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class OllamaTags(Told):
    models: list[OllamaModel]


class OllamaLoaded(OllamaModel):
    size_vram: int
    context_length: int
    expires_at: str


class OllamaPs(Told):
    models: list[OllamaLoaded]


class OllamaShown(Told):
    modelfile: str
    parameters: str
    template: str
    license: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    base_model: bool
    modified_at: str


class OllamaVersion(Told):
    version: str


class PullStep(Told):
    status: str
    completed: int | UnsetType = UNSET
    total: int | UnsetType = UNSET


_CHAT = {"model": "smollm2-135m", "messages": [{"role": "user", "content": "What is the capital of France?"}]}


_CREATE = {"model": "precise", "from": "smollm2-135m", "parameters": {"temperature": 0}}


def _post(path: str, about: str, body: type, example: dict[str, Any], whole: type, *, lines: bool = False) -> Operation:
    forms = (*json_of(whole), *((Content(NDJSON, (whole, OllamaError)),) if lines else ()))
    return Operation(
        path=path,
        about=about,
        tag="Ollama",
        error=OllamaError,
        methods=("post",),
        body=body,
        example={"model": "smollm2-135m"} | example,
        answers={200: forms},
        errors=(507,),
    )


def _get(path: str, about: str, answer: type) -> Operation:
    return Operation(path=path, about=about, tag="Ollama", error=OllamaError, answers={200: json_of(answer)})


def _not_here(path: str, *methods: str, parameters: tuple[Parameter, ...] = ()) -> Operation:
    about = "Not supported: models are named in the configuration"
    answers = {501: json_of(OllamaError)}
    return Operation(
        path=path,
        about=about,
        tag="Ollama",
        error=OllamaError,
        methods=methods,
        answers=answers,
        parameters=parameters,
    )


OPERATIONS = (
    _post("/api/chat", "Answer a conversation", request.ChatBody, _CHAT, OllamaChat, lines=True),
    _post(
        "/api/generate",
        "Answer a prompt",
        request.GenerateBody,
        {"prompt": "The capital of France is"},
        OllamaGenerated,
        lines=True,
    ),
    _post("/api/embed", "Turn texts into vectors", request.EmbedBody, {"input": "a ship"}, OllamaVectors),
    _post("/api/embeddings", "The same for one", request.EmbeddingsBody, {"prompt": "a ship"}, OllamaVector),
    _post("/api/create", "Another name for a model", create.CreateBody, _CREATE, PullStep, lines=True),
    _post("/api/pull", "Bring a model's files here", models.NameBody, {}, PullStep, lines=True),
    _post("/api/show", "What a model is made of", models.NameBody, {}, OllamaShown),
    _get("/api/tags", "Which models there are", OllamaTags),
    _get("/api/ps", "Which are loaded, and until when", OllamaPs),
    _get("/api/version", "The version of Ollama's API that is spoken", OllamaVersion),
    _not_here("/api/copy", "post"),
    _not_here("/api/push", "post"),
    _not_here("/api/delete", "delete"),
    _not_here("/api/blobs/{digest}", "head", "post", parameters=(Parameter("digest", "A blob's digest."),)),
)
