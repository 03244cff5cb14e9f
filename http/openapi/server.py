"""What the server's own endpoints answer (health, administration, this document), for the OpenAPI document."""

from typing import Any, Literal

import msgspec
from msgspec import Struct

from plimsoll.actors.status import CleanupReport, State
from plimsoll.engine.protocol import ModelInfo
from plimsoll.http.openapi.openai import MODEL, Error
from plimsoll.http.openapi.schema import Content, Operation, Parameter, Told, json_of
from plimsoll.http.operations import admin, model_search, probes
from plimsoll.http.process import model_settings


class MemoryTold(Told):
    """A GB is 2**30 bytes."""

    used_percent: float | None
    available_gb: float | None
    total_gb: float | None
    warning_threshold: float
    critical_threshold: float


class LoadedModel(Told):
    name: str
    state: State
    active: int
    queued: int
    footprint_gb: float
    device: str | None
    blas: str | None


Level = Literal["normal", "warning", "critical", "emergency"]


class NodeTold(Told):
    """One node of a cluster; ``models`` names those that have a life there."""

    name: str
    level: Level
    used_percent: float | None
    models: list[str]


class FrontTold(Told):
    """Open connections, and what request bodies take: reserved to read them, or kept until their answers end."""

    connections: int
    connections_limit: int
    body_bytes: int
    body_bytes_limit: int
    bodies_waiting: int


class Health(Told):
    """``nodes`` is there where a cluster serves."""

    status: Literal["healthy", "warning", "degraded", "critical"]
    memory: MemoryTold
    binding_source: str | None
    sources: dict[str, float]
    level: Level | None
    admission: Literal["open", "closed"] | None
    sampler_lag_ms: float | None
    stopping: bool
    front: FrontTold
    models: list[LoadedModel]
    problems: list[str]
    version: str
    uptime_s: float
    nodes: list[NodeTold] | msgspec.UnsetType = msgspec.UNSET


class Live(Told):
    status: Literal["alive"]


class Readiness(Told):
    status: Literal["ready", "not ready"]
    reasons: list[str]


class HostTold(Told):
    """The fullest source of memory on a host of the group that serves the model; bytes."""

    host: str
    source: str
    total: int
    used: int


class ModelTold(Told):
    """One model; times in seconds."""

    name: str
    state: State
    active: int
    queued: int
    paused: int
    pinned: bool
    pid: int | None
    idle_s: float | None
    idle_ttl_s: float | None
    unload_in_s: float | None
    stage: str | None
    done_bytes: int
    total_bytes: int
    footprint_bytes: int
    granted_bytes: int
    kv_bytes: int
    kv_most_bytes: int
    longest_context: int | None
    tokens_per_s: float
    info: ModelInfo | None
    error: str | None
    hosts: list[HostTold]


class ModelsTold(Told):
    models: list[ModelTold]


class PlanTold(Told):
    """What loading would do; ``longest_context`` in tokens."""

    model: str
    verdict: Literal["load", "evict", "wait", "refuse", "never"]
    evict: list[str]
    blockers: list[str]
    required_gb: float
    available_gb: float
    evictable_gb: float
    percent_after: float
    longest_context: int | None
    dequantize: bool


class ModelFound(Told):
    """A repo; ``size_bytes`` of its weights and ``fits`` are null where the hub does not say."""

    name: str
    size_bytes: int | None
    fits: bool | None
    downloads: int
    gated: bool


class ModelsFound(Told):
    """``budget_bytes`` is what models may take on this machine."""

    budget_bytes: int
    models: list[ModelFound]


class Reloaded(Told):
    """Key paths of the configuration: those that have changed, and those that only a restart changes."""

    changed: list[str]
    needs_restart: list[str]


class SettingsTold(Told):
    """``entry`` has the keys that are not at their defaults."""

    model: str
    entry: dict[str, Any]


class Probed(Told):
    message: str


class Document(Struct):
    """An OpenAPI document."""

    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]
    components: dict[str, Any]


def get(path: str, about: str, answer: type, *, public: bool = False, **more: Any) -> Operation:
    """What the server tells of itself by GET and HEAD."""
    answers = {200: json_of(answer)} | more.pop("answers", {})
    return Operation(path=path, about=about, tag="Server", error=Error, answers=answers, public=public, **more)


def _post(path: str, about: str, answer: type, **more: Any) -> Operation:
    answers = {200: json_of(answer)}
    return Operation(path=path, about=about, tag="Server", error=Error, methods=("post",), answers=answers, **more)


def _act(verb: str, about: str, body: type | None = None, *, body_needed: bool = False) -> Operation:
    path = f"/admin/models/{{model}}/{verb}"
    return _post(path, about, ModelTold, body=body, body_needed=body_needed, parameters=(MODEL,), errors=(507,))


OPERATIONS = (
    get(
        "/health",
        "The memory and the state of the server; 503 at critical, which also starts a clean-up",
        Health,
        public=True,
        parameters=(Parameter("cleanup", "`no`: start none.", {"enum": ["yes", "no"], "default": "yes"}),),
        answers={503: json_of(Health)},
    ),
    get("/health/live", "Whether the process answers", Live, public=True),
    get("/health/ready", "Whether it takes requests", Readiness, public=True, answers={503: json_of(Readiness)}),
    get("/openapi.json", "This document", Document, public=True),
    get("/admin/models", "Which models there are and how they are", ModelsTold),
    _act("load", "Load a model; answers when it is loaded"),
    _act("unload", "Unload a model; answers when its memory is back", admin.UnloadBody),
    _act("pin", "Pin a model or not, whatever its entry says, until the server ends", admin.PinBody, body_needed=True),
    get(
        "/admin/plan",
        "What loading a model would do now",
        PlanTold,
        parameters=(Parameter("model", "A model's name.", required=True),),
    ),
    get(
        "/admin/search",
        "Models of the hub in MLX's format by words, those that fit this machine first; for administrators",
        ModelsFound,
        parameters=(
            Parameter("words", "Words of a model's name.", required=True),
            Parameter("limit", "How many.", {"type": "integer", "minimum": 1, "maximum": model_search.MOST_ROWS}),
        ),
    ),
    _post(
        "/admin/cleanup",
        "Unload idle models, all with `aggressive`; answers when their memory is back",
        CleanupReport,
        body=admin.CleanupBody,
        body_needed=False,
    ),
    _post("/admin/reload", "Read the configuration file again; a file that can't be used changes nothing", Reloaded),
    get(
        "/admin/settings",
        "The keys that the entry of a model sets; for administrators",
        SettingsTold,
        parameters=(Parameter("model", "A model's name.", required=True),),
    ),
    _post(
        "/admin/settings",
        "Change the entry of a model in the configuration file, and read that again",
        Reloaded,
        body=model_settings.SettingsBody,
    ),
    Operation(
        path="/",
        about="The page for browsers (Accept: text/html), else what Ollama's clients look for",
        tag="Server",
        error=Error,
        answers={200: (Content("text/plain"), Content("text/html")), 304: ()},
        public=True,
    ),
    *(get(path, "For clients that look whether a server is there", Probed, public=True) for path in probes.PATHS),
    Operation(
        path="/static/{path}",
        about="The page's files",
        tag="Server",
        error=Error,
        parameters=(Parameter("path", "A file's path, like app.js."),),
        answers={200: tuple(map(Content, ("text/javascript", "text/css", "text/html", "image/svg+xml"))), 304: ()},
        public=True,
    ),
)
