"""The list of models, as OpenAI's clients and LM Studio's read it, with how long a conversation each takes."""

from typing import Any
from urllib.parse import unquote

from sanic import HTTPResponse

from plimsoll.actors.status import LOADED, Status
from plimsoll.catalog.facts import Facts
from plimsoll.http.app_state import App, AppState
from plimsoll.http.errors import respond
from plimsoll.http.known_models import context_of, facts_now, offered_facts
from plimsoll.http.limits.body_budget import HttpRequest
from plimsoll.http.operations.health import read_status


def add_routes(app: App, state: AppState) -> None:
    """Register this module's endpoints."""
    api = _Models(state)
    reads = ["GET", "HEAD"]
    app.add_route(api.models, "/v1/models", methods=reads, name="models")
    app.add_route(api.model, "/v1/models/<name:path>", methods=reads, name="model")
    app.add_route(api.lm_studio, "/api/v0/models", methods=reads, name="lm_studio_v0_models")
    app.add_route(api.lm_studio_new, "/api/v1/models", methods=reads, name="lm_studio_v1_models")


# How long the lists wait for disks. Programs ask for them at each start, and tell by them whether the server is well.
_AT_ONCE_S = 0.2


class _Models:
    def __init__(self, state: AppState) -> None:
        self._state = state

    async def models(self, _request: HttpRequest) -> HTTPResponse:
        known, contexts = await self._known()
        bodies = [_body(one, contexts.get(one.name), self._state.created) for one in known]
        return respond(200, {"object": "list", "data": bodies})

    async def model(self, _request: HttpRequest, name: str) -> HTTPResponse:
        name = unquote(name)  # Sanic leaves an encoded slash alone
        found = await self._state.find(name)
        known = await facts_now(self._state, found)
        return respond(200, _body(known, known.context, self._state.created) | {"id": name})

    async def lm_studio(self, _request: HttpRequest) -> HTTPResponse:
        known, contexts = await self._known()
        return respond(200, {"object": "list", "data": [_lm_studio(one, contexts.get(one.name)) for one in known]})

    async def lm_studio_new(self, _request: HttpRequest) -> HTTPResponse:
        known, contexts = await self._known()
        return respond(200, {"models": [_lm_studio_new(one, contexts.get(one.name)) for one in known]})

    async def _known(self) -> tuple[list[Facts], dict[str, int]]:
        """Every model, and the contexts of those that are loaded."""
        offered = await offered_facts(self._state, _AT_ONCE_S)
        now = await read_status(self._state)
        loaded = _contexts(now) if isinstance(now, Status) else {}
        contexts = {one.name: loaded[worker] for worker, one in offered if worker in loaded}
        return [one for _, one in offered], contexts


def _contexts(now: Status) -> dict[str, int]:
    return {one.name: context_of(one, now) for one in now.models if one.state in LOADED}


def _body(known: Facts, context: int | None, created: int) -> dict[str, Any]:
    """Beside OpenAI's own keys those of vLLM, llama.cpp and OpenRouter, null where the files do not say it."""
    accepted = context or known.context or None
    return {
        "id": known.name,
        "object": "model",
        "created": created,
        "owned_by": "plimsoll",
        "context_length": accepted,
        "max_model_len": accepted,
        "meta": {"n_ctx_train": known.context or None, "n_params": known.parameters or None, "size": known.size_bytes},
        "capabilities": known.capabilities,
    }


def _lm_studio(known: Facts, context: int | None) -> dict[str, Any]:
    loaded = {"loaded_context_length": context} if context is not None else {}
    return {
        "id": known.name,
        "object": "model",
        "type": _type(known, "embeddings"),
        "publisher": _publisher(known),
        "arch": known.family,
        "compatibility_type": known.format,
        "quantization": known.quantization,
        "state": "not-loaded" if context is None else "loaded",
        "max_context_length": known.context or None,
        **loaded,
    }


def _lm_studio_new(known: Facts, context: int | None) -> dict[str, Any]:
    instance = {"id": known.name, "config": {"context_length": context}}
    embeds = _type(known, "embedding") == "embedding"
    abilities = {} if embeds else {"capabilities": {"vision": False, "trained_for_tool_use": True}}
    return {
        "type": _type(known, "embedding"),
        "publisher": _publisher(known),
        "key": known.name,
        "display_name": known.name.rpartition("/")[2],
        "architecture": known.family,
        "quantization": {"name": known.quantization} if known.quantization else None,
        "size_bytes": known.size_bytes,
        "params_string": known.details()["parameter_size"] or None,
        "loaded_instances": [] if context is None else [instance],
        "max_context_length": known.context or None,
        "format": known.format,
        **abilities,
    }


def _type(known: Facts, embeds: str) -> str:
    """LM Studio knows two types: a cross encoder, which can't chat either, goes with the embedding models."""
    return "llm" if "completion" in known.capabilities else embeds


def _publisher(known: Facts) -> str:
    return known.name.rpartition("/")[0] or "plimsoll"
