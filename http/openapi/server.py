"""What the server's own endpoints answer (health, administration, this document), for the OpenAPI document."""

from typing import Any, Literal

import msgspec
from msgspec import Struct

from plimsoll.actors.messages import CleanupReport, State
from plimsoll.engine.protocol import ModelInfo
from plimsoll.http.openapi.openai import MODEL
from plimsoll.http.openapi.openai_answers import Error
from plimsoll.http.openapi.shape import Content, Operation, Parameter, Told, json_of
from plimsoll.http.operations import admin


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
    pinned: bool
    pid: int | None
    idle_s: float | None
    idle_ttl_s: float | None
    unload_in_s: float | None
    stage: str | None
    done_bytes: int
    total_bytes: int
    footprint_bytes: int
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


class Reloaded(Told):
    """Key paths of the configuration: those that have changed, and those that only a restart changes."""

    changed: list[str]
    needs_restart: list[str]


class Document(Struct):
    """An OpenAPI document."""

    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]
    components: dict[str, Any]


def _get(path: str, about: str, answer: type, *, public: bool = False, **more: Any) -> Operation:
    answers = {200: json_of(answer)} | more.pop("answers", {})
    return Operation(path=path, about=about, tag="Server", error=Error, answers=answers, public=public, **more)


def _act(verb: str, about: str, body: type | None = None, *, body_needed: bool = False) -> Operation:
    return Operation(
        path=f"/admin/models/{{model}}/{verb}",
        about=about,
        tag="Server",
        error=Error,
        methods=("post",),
        body=body,
        body_needed=body_needed,
        parameters=(MODEL,),
        answers={200: json_of(ModelTold)},
        errors=(507,),
    )


OPERATIONS = (
    _get(
        "/health",
        "The memory and the state of the server; 503 at critical, which also starts a clean-up",
        Health,
        public=True,
        parameters=(Parameter("cleanup", "`no`: start none.", {"enum": ["yes", "no"], "default": "yes"}),),
        answers={503: json_of(Health)},
    ),
    _get("/health/live", "Whether the process answers", Live, public=True),
    _get("/health/ready", "Whether it takes requests", Readiness, public=True, answers={503: json_of(Readiness)}),
    _get("/openapi.json", "This document", Document, public=True),
    _get("/admin/models", "Which models there are and how they are", ModelsTold),
    _act("load", "Load a model; answers when it is loaded"),
    _act("unload", "Unload a model; answers when its memory is back", admin.UnloadBody),
    _act("pin", "Pin a model or not, whatever its entry says, until the server ends", admin.PinBody, body_needed=True),
    _get(
        "/admin/plan",
        "What loading a model would do now",
        PlanTold,
        methods=("get",),
        parameters=(Parameter("model", "A model's name.", required=True),),
    ),
    Operation(
        path="/admin/cleanup",
        about="Unload idle models, all with `aggressive`; answers when their memory is back",
        tag="Server",
        error=Error,
        methods=("post",),
        body=admin.CleanupBody,
        body_needed=False,
        answers={200: json_of(CleanupReport)},
    ),
    Operation(
        path="/admin/reload",
        about="Read the configuration file again; a file that can't be used changes nothing",
        tag="Server",
        error=Error,
        methods=("post",),
        answers={200: json_of(Reloaded)},
    ),
    Operation(
        path="/",
        about="The page for browsers (Accept: text/html), else what Ollama's clients look for",
        tag="Server",
        error=Error,
        answers={200: (Content("text/plain"), Content("text/html")), 304: ()},
        public=True,
    ),
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
