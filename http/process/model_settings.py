"""A model's entry in the configuration file, read and changed over HTTP by administrators."""

from typing import Annotated, Any

import msgspec
from sanic import HTTPResponse

from plimsoll.catalog.entry_changes import ON_THIS_MACHINE, entry_changes
from plimsoll.config import ModelEntry
from plimsoll.errors import BadRequest, Forbidden
from plimsoll.http.app_state import App
from plimsoll.http.body import decode
from plimsoll.http.errors import respond
from plimsoll.http.limits.body_budget import HttpRequest
from plimsoll.http.process.reload import Reloader
from plimsoll.units import to_plain

_Key = Annotated[str, msgspec.Meta(pattern=r"^[a-z_]+(\.[A-Za-z0-9._-]+)*$", max_length=200)]


class SettingsBody(msgspec.Struct):
    """Which keys of the model's entry get which values, and which are taken out of it."""

    model: Annotated[str, msgspec.Meta(min_length=1)]
    set: dict[_Key, Any] = {}
    unset: list[_Key] = []


_bodies = msgspec.json.Decoder(SettingsBody)
_ALLOWED = {
    "model": "a model's name",
    "set": 'an object like {"temperature": 0.7}',
    "unset": 'a list of keys like ["temperature"]',
}


def add_routes(app: App, reloader: Reloader) -> None:
    """Register this module's endpoints."""
    state = app.ctx.state

    async def read(request: HttpRequest) -> HTTPResponse:
        name = request.args.get("model")
        if not name:
            raise BadRequest("say which model: GET /admin/settings?model=NAME", param="model")
        found = name if name in state.config.models.entries else (await state.find(name)).source.name
        entry = state.config.models.entries.get(found)
        return respond(200, {"model": found, "entry": _plain(entry)})

    async def change(request: HttpRequest) -> HTTPResponse:
        body: SettingsBody = decode(request.body, _bodies, _ALLOWED)
        for key in (*body.set, *body.unset):
            if key.partition(".")[0] in ON_THIS_MACHINE:
                raise Forbidden(
                    f"{key} names files or hosts: set it on the server's machine with plimsoll set", param=key
                )
        changes = entry_changes(state.catalog, body.model, body.set, body.unset)
        plan = await reloader.change(changes)
        return respond(200, {"changed": plan.changed, "needs_restart": plan.needs_restart})

    app.add_route(read, "/admin/settings", methods=["GET", "HEAD"], name="admin_settings")
    app.add_route(change, "/admin/settings", methods=["POST"], name="admin_change_settings")


def _plain(entry: ModelEntry | None) -> dict[str, Any]:
    """The keys of an entry that are not at their defaults; none where the model has no entry."""
    if entry is None:
        return {}
    told: dict[str, Any] = msgspec.to_builtins(entry, enc_hook=to_plain)
    plain: dict[str, Any] = msgspec.to_builtins(ModelEntry(source=entry.source), enc_hook=to_plain)
    return {key: value for key, value in told.items() if key == "source" or plain.get(key, msgspec.UNSET) != value}
