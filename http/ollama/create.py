"""Ollama's create: another name for a model that is here, with parameters of its own, in the configuration file."""

import re
from typing import Any

import msgspec
from sanic import HTTPResponse

from plimsoll.catalog.entries import CatalogModel
from plimsoll.catalog.entry_changes import entry_changes
from plimsoll.catalog.names import Catalog
from plimsoll.config_file import REMOVED, Change, Key
from plimsoll.errors import UnknownModel
from plimsoll.http.app_state import App, AppState
from plimsoll.http.body import read, refuse
from plimsoll.http.errors import respond
from plimsoll.http.limits.body_budget import HttpRequest
from plimsoll.http.ollama.answers import NDJSON, line
from plimsoll.http.ollama.keep_alive import find
from plimsoll.http.ollama.models import NAMES_ALLOWED, NameBody
from plimsoll.http.ollama.options import ALLOWED as ALLOWED_OPTIONS
from plimsoll.http.ollama.options import Options, limits

_SUCCESS = {"status": "success"}
# Ollama's names of what a profile may have, by the profile's own.
_KEPT = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
_NOT_KEPT = ("seed", "stop", "presence_penalty", "frequency_penalty")
_NO_PROFILE_NAME = re.compile(r"[^A-Za-z0-9._-]+")


class CreateBody(NameBody, rename={"source": "from"}, kw_only=True):
    """``from`` is the model that the new name is for. What makes new files of a model is refused."""

    source: str = ""
    parameters: Options | None = None
    system: str | None = None
    template: Any = None
    license: Any = None
    messages: Any = None
    files: Any = None
    adapters: Any = None
    quantize: Any = None
    modelfile: Any = None


_REFUSED = {
    "template": "set chat_template in the model's entry, on the server's machine",
    "license": "nothing is kept of it",
    "messages": "a conversation's beginning is not kept",
    "files": "put the model's files into models.dir",
    "adapters": "set adapter in the model's entry, on the server's machine",
    "quantize": "convert the model with mlx_lm.convert",
    "modelfile": "send from, parameters and system",
}
_ALLOWED = {
    **NAMES_ALLOWED,
    **{key.replace("options", "parameters"): what for key, what in ALLOWED_OPTIONS.items()},
    "from": "a model's name",
    "system": "a string",
}
_bodies = msgspec.json.Decoder(CreateBody)


def add_routes(app: App, state: AppState) -> None:
    """Register this module's endpoint."""

    async def create(request: HttpRequest) -> HTTPResponse:
        body: CreateBody = read(request, _bodies, _ALLOWED)
        name = (body.model or body.name).removesuffix(":latest")
        if not name or not body.source:
            raise refuse("from" if name else "model", f"is missing, but must be {_ALLOWED['from']}")
        values = _values(body)
        changes = _changes(state.catalog, name, await find(state, body.source), values)
        await app.ctx.reloader.change(changes)
        if body.stream is False:
            return respond(200, _SUCCESS)
        return HTTPResponse(line(_SUCCESS), 200, content_type=NDJSON)

    app.add_route(create, "/api/create", methods=["POST"], name="ollama_create")


def _values(body: CreateBody) -> dict[str, Any]:
    """The keys of a profile. Raises ``BadRequest`` for what a profile can't have."""
    for key, instead in _REFUSED.items():
        if getattr(body, key):
            raise refuse(key, f"is not supported: {instead}")
    options = body.parameters or Options()
    for key in _NOT_KEPT:
        if getattr(options, key) is not None:
            raise refuse(f"parameters.{key}", "can't be kept for a model: send it with each request")
    found = {ours: getattr(options, its) for ours, its in _KEPT.items() if getattr(options, its) is not None}
    if "top_k" in found:
        found["top_k"] = max(0, found["top_k"])
    if most := limits(options)[0]:
        found["max_tokens"] = most
    return found | ({"system_prefix": body.system} if body.system else {})


def _changes(catalog: Catalog, name: str, model: CatalogModel, values: dict[str, Any]) -> list[Change]:
    """What makes ``name`` an alias of the model, or of a profile of it that has the ``values``.

    A name that was created before for the same model is made anew.
    """
    if model.profile:
        raise refuse("from", f"is a profile of {model.source.name}: create from {model.source.name} itself")
    place: Key = ("models", "entries", model.source.name)
    entry = catalog.config.entries.get(model.source.name)
    aliases, profiles = (entry.aliases, entry.profiles) if entry else ([], {})
    base, _, profile = name.rpartition(":")
    if profile and _find(catalog, base) == model:
        if not values:
            raise refuse("parameters", f"or system is needed: {name} is to have defaults of its own")
        before = profiles[profile].aliases if profile in profiles else []
        return _with_profile(catalog, (*place, "profiles", profile), values, before)
    profile = _NO_PROFILE_NAME.sub("-", name).strip("-.")[:64]
    is_mine = profile in profiles and name in profiles[profile].aliases
    if not is_mine and name not in aliases and (_find(catalog, name) or name in catalog.config.entries):
        raise refuse("model", f"is {name}, which is another model's name already: choose another one")
    if values:
        if profile in profiles and not is_mine:
            raise refuse("model", f"is {name}, and the profile {profile} is there already: choose another name")
        others = [one for one in aliases if one != name]
        fewer: list[Change] = [((*place, "aliases"), others)] if name in aliases else []
        return [*fewer, *_with_profile(catalog, (*place, "profiles", profile), values, [name])]
    gone: list[Change] = [((*place, "profiles", profile), REMOVED)] if is_mine else []
    all_of_it = {"aliases": [*(one for one in aliases if one != name), name]}
    return [*gone, *entry_changes(catalog, model.source.name, all_of_it)]


def _with_profile(catalog: Catalog, place: Key, values: dict[str, Any], aliases: list[str]) -> list[Change]:
    """The profile at ``place`` with these values and no others."""
    *_, entry, _, profile = place
    more = {"aliases": aliases} if aliases else {}
    return [(place, REMOVED), *entry_changes(catalog, f"{entry}:{profile}", values | more)]


def _find(catalog: Catalog, name: str) -> CatalogModel | None:
    try:
        return catalog.find(name)
    except UnknownModel:
        return None
