"""Ollama's endpoints about models: the list of all, the loaded ones, the details of one."""

import time
from datetime import UTC, datetime
from typing import Any

import msgspec
from sanic import HTTPResponse

from plimsoll.actors.status import LOADED, ModelStatus, Status
from plimsoll.catalog.facts import Facts
from plimsoll.http.app_state import App, AppState
from plimsoll.http.body import read
from plimsoll.http.errors import respond
from plimsoll.http.known_models import all_facts, context_of, facts_now, offered_facts
from plimsoll.http.limits.body_budget import HttpRequest
from plimsoll.http.ollama.answers import timestamp
from plimsoll.http.ollama.keep_alive import find
from plimsoll.http.operations.health import need_status

# Clients tell by this number what the API can do, so it is Ollama's and not Plimsoll's. From 0.13.4 on Codex uses the
# Responses API with it.
OLLAMA_VERSION = "0.13.4"
# What Ollama says for a model that stays loaded for ever: the longest duration that Go knows, 292 years, from now.
_NEVER = datetime(2318, 1, 1, tzinfo=UTC).timestamp()


class NameBody(msgspec.Struct):
    """Old clients send ``name`` instead of ``model``."""

    model: str = ""
    name: str = ""
    stream: bool | None = None


NAMES_ALLOWED = {"model": "a model's name", "name": "a model's name", "stream": "true or false"}
_names = msgspec.json.Decoder(NameBody)


def parse_name(request: HttpRequest) -> NameBody:
    """The body of a request that only names a model, with the name under ``model``. Raises ``BadRequest``."""
    body: NameBody = read(request, _names, NAMES_ALLOWED)
    return NameBody(body.model or body.name, stream=body.stream)


def add_routes(app: App, state: AppState) -> None:
    """Register this module's endpoints."""
    api = _Models(state)
    app.add_route(api.tags, "/api/tags", methods=["GET", "HEAD"], name="ollama_tags")
    app.add_route(api.ps, "/api/ps", methods=["GET", "HEAD"], name="ollama_ps")
    app.add_route(api.show, "/api/show", methods=["POST"], name="ollama_show")
    app.add_route(api.version, "/api/version", methods=["GET", "HEAD"], name="ollama_version")


class _Models:
    def __init__(self, state: AppState) -> None:
        self._state = state

    async def tags(self, _request: HttpRequest) -> HTTPResponse:
        known = [one for _, one in await offered_facts(self._state)]
        return respond(200, {"models": [self._tag(one) for one in known]})

    async def ps(self, _request: HttpRequest) -> HTTPResponse:
        now = await need_status(self._state)
        loaded = {one.name: one for one in now.models if one.state in LOADED}
        known = await all_facts(self._state, list(loaded))
        bodies = [self._tag(one) | _running(loaded[one.name], now) for one in known]
        return respond(200, {"models": bodies})

    async def show(self, request: HttpRequest) -> HTTPResponse:
        known = await facts_now(self._state, await find(self._state, parse_name(request).model))
        body = {
            "modelfile": "",
            "parameters": _parameters(known),
            "template": known.template,
            "license": "",
            "details": known.details(),
            "model_info": known.model_info(),
            "capabilities": known.capabilities,
            "base_model": known.is_base,
            "modified_at": timestamp(known.modified_s or self._state.created),
        }
        return respond(200, body)

    async def version(self, _request: HttpRequest) -> HTTPResponse:
        return respond(200, {"version": OLLAMA_VERSION})

    def _tag(self, known: Facts) -> dict[str, Any]:
        return {
            "name": known.name,
            "model": known.name,
            "modified_at": timestamp(known.modified_s or self._state.created),
            "size": known.size_bytes,
            "digest": known.digest,
            "details": known.details(),
        }


def _parameters(known: Facts) -> str:
    """The sampling that the entry or the model's files ask for, as a Modelfile writes it."""
    given = {name: told["value"] for name, told in known.sampling.items() if told["from"] != "neutral"}
    return "\n".join(f"{name} {value:g}" for name, value in given.items())


def _running(model: ModelStatus, now: Status) -> dict[str, Any]:
    footprint = now.footprints.get(model.name, 0)
    info = model.info
    on_gpu = info is not None and not info.device.startswith("cpu")
    expires_s = _NEVER
    if model.idle_ttl_s is not None and not model.pinned:
        expires_s = time.time() + model.last_used + model.idle_ttl_s - time.monotonic()
    return {
        "size": footprint,
        "size_vram": footprint if on_gpu else 0,
        "context_length": context_of(model, now),
        "expires_at": timestamp(min(expires_s, _NEVER)),
    }
