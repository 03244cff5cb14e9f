"""Ollama's endpoints about models: what there is, what is loaded, what one is made of."""

import asyncio
import contextlib
import time
from datetime import UTC, datetime
from typing import Any

import msgspec
from sanic import HTTPResponse

from plimsoll.actors.messages import ModelStatus, State, Status
from plimsoll.catalog import default_cache_dir
from plimsoll.errors import UnknownModel
from plimsoll.http.body import read
from plimsoll.http.errors import respond
from plimsoll.http.front import AnyRequest, App, Front
from plimsoll.http.ollama.files import Facts, facts
from plimsoll.http.ollama.frames import timestamp
from plimsoll.http.ollama.lease import find
from plimsoll.http.operations.health import need_status

# Clients look at the number to learn what the API can do; ours would tell them nothing.
OLLAMA_VERSION = "0.12.0"
_LOADED = frozenset({State.READY, State.BUSY, State.DRAINING})
# What Ollama itself says for a model that stays for ever: the end of Go's durations.
_NEVER = datetime(2318, 1, 1, tzinfo=UTC).timestamp()


class NameBody(msgspec.Struct):
    """``name`` is what old clients call ``model``."""

    model: str = ""
    name: str = ""
    stream: bool | None = None


_ALLOWED = {"model": "a model's name", "name": "a model's name", "stream": "true or false"}
_names = msgspec.json.Decoder(NameBody)


def parse_name(request: AnyRequest) -> NameBody:
    """A body that names a model, under ``model``. Raises ``BadRequest``."""
    body: NameBody = read(request, _names, _ALLOWED)
    return NameBody(body.model or body.name, stream=body.stream)


def add_routes(app: App, front: Front) -> None:
    """Register this module's endpoints."""
    api = _Models(front)
    app.add_route(api.tags, "/api/tags", methods=["GET", "HEAD"], name="ollama_tags")
    app.add_route(api.ps, "/api/ps", methods=["GET", "HEAD"], name="ollama_ps")
    app.add_route(api.show, "/api/show", methods=["POST"], name="ollama_show")
    app.add_route(api.version, "/api/version", methods=["GET", "HEAD"], name="ollama_version")


class _Models:
    def __init__(self, front: Front) -> None:
        self._front = front

    async def tags(self, _request: AnyRequest) -> HTTPResponse:
        known = await asyncio.to_thread(self._all_facts, self._front.catalog.names())
        return respond(200, {"models": [self._tag(one) for one in known]})

    async def ps(self, _request: AnyRequest) -> HTTPResponse:
        now = await need_status(self._front)
        loaded = {one.name: one for one in now.models if one.state in _LOADED}
        known = await asyncio.to_thread(self._all_facts, list(loaded))
        bodies = [self._tag(one) | _running(loaded[one.name], now) for one in known]
        return respond(200, {"models": bodies})

    async def show(self, request: AnyRequest) -> HTTPResponse:
        model = find(self._front, parse_name(request).model)
        known = await asyncio.to_thread(facts, model, default_cache_dir(self._front.config))
        body = {
            "modelfile": "",
            "parameters": "",
            "template": known.template,
            "license": "",
            "details": known.details(),
            "model_info": known.model_info(),
            "capabilities": known.capabilities,
            "modified_at": timestamp(known.modified_s or self._front.created),
        }
        return respond(200, body)

    async def version(self, _request: AnyRequest) -> HTTPResponse:
        return respond(200, {"version": OLLAMA_VERSION})

    def _all_facts(self, names: list[str]) -> list[Facts]:
        cache_dir = default_cache_dir(self._front.config)
        known = []
        for name in names:
            # A folder may have left models.dir since it was named.
            with contextlib.suppress(UnknownModel):
                known.append(facts(self._front.catalog.find(name), cache_dir))
        return known

    def _tag(self, known: Facts) -> dict[str, Any]:
        return {
            "name": known.name,
            "model": known.name,
            "modified_at": timestamp(known.modified_s or self._front.created),
            "size": known.size_bytes,
            "digest": known.digest,
            "details": known.details(),
        }


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
        "context_length": info.context if info else 0,
        "expires_at": timestamp(min(expires_s, _NEVER)),
    }
