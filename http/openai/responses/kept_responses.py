"""Endpoints for stored responses and conversations; puts stored items in the place of references to them."""

from typing import Any

import msgspec
from sanic import HTTPResponse

from plimsoll.http import left_out
from plimsoll.http.app_state import App, AppState
from plimsoll.http.body import read, refuse
from plimsoll.http.errors import respond
from plimsoll.http.limits.body_budget import HttpRequest
from plimsoll.http.openai.responses.input import Item
from plimsoll.http.response_store import ResponseStore, UnknownResponse

Items = list[Item]


class ConversationBody(msgspec.Struct):
    items: Items | None = None
    metadata: dict[str, str] | None = None


_ALLOWED = {"items": "a list of items", "metadata": "an object of strings"}
_conversations = msgspec.json.Decoder(ConversationBody)
_items = msgspec.json.Decoder(Items)


def add_routes(app: App, state: AppState) -> None:
    """Register this module's endpoints."""
    store = state.responses

    async def get(request: HttpRequest, name: str) -> HTTPResponse:
        return respond(200, store.get(name, owner_of(request)).body)

    async def items(request: HttpRequest, name: str) -> HTTPResponse:
        found = [_told(item) for item in _items.decode(store.get(name, owner_of(request)).items)]
        ids = [one.get("id") for one in (*found[:1], *found[-1:])]
        first, last = (ids[0], ids[-1]) if ids else (None, None)
        return respond(200, {"object": "list", "data": found, "first_id": first, "last_id": last, "has_more": False})

    async def delete(request: HttpRequest, name: str) -> HTTPResponse:
        if not store.drop(name, owner_of(request)):
            raise UnknownResponse(f"{name[:100]!r} is not known here.")
        kind = "conversation.deleted" if "/conversations/" in request.path else "response"
        return respond(200, {"id": name, "object": kind, "deleted": True})

    async def begin(request: HttpRequest) -> HTTPResponse:
        body: ConversationBody = read(request, _conversations, _ALLOWED)
        if not store.is_on:
            raise refuse("items", "can't be kept: limits.stored_responses in the configuration is 0")
        return respond(200, store.begin_conversation(owner_of(request), body.items or [], body.metadata or {}))

    app.add_route(begin, "/v1/conversations", methods=["POST"], name="conversations")
    for path, kind in (("/v1/responses", "response"), ("/v1/conversations", "conversation")):
        app.add_route(get, f"{path}/<name:str>", methods=["GET", "HEAD"], name=f"{kind}_get")
        app.add_route(delete, f"{path}/<name:str>", methods=["DELETE"], name=f"{kind}_delete")
    app.add_route(items, "/v1/responses/<name:str>/input_items", methods=["GET", "HEAD"], name="response_items")
    app.add_route(items, "/v1/conversations/<name:str>/items", methods=["GET", "HEAD"], name="conversation_items")


def owner_of(request: HttpRequest) -> str:
    """The name of the API key that the request came with: responses belong to a key."""
    return str(request.ctx.caller.name)


def conversation_id(given: Any) -> str | None:
    """The id of a conversation, which is given alone or in an object. Raises ``BadRequest`` for anything else."""
    name = given.get("id") if isinstance(given, dict) else given
    if name is not None and not isinstance(name, str):
        raise refuse("conversation", 'must be a conversation\'s id or an object like {"id": "conv_1"}')
    return name


def whole_input(store: ResponseStore, owner: str, body: Any) -> Items:
    """The items of a request with those that it refers to before them. Raises ``UnknownResponse``, ``BadRequest``."""
    new = [Item(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    conversation = conversation_id(body.conversation)
    if conversation and body.previous_response_id:
        raise refuse("previous_response_id", "is set, but so is conversation: a request goes on with one of them")
    earlier: Items = []
    if conversation:
        earlier = _items.decode(store.get(conversation, owner, "conversation").items)
    elif body.previous_response_id:
        earlier = _items.decode(store.get(body.previous_response_id, owner, "previous_response_id").items)
    return [*earlier, *_found(new, store, owner)]


def _found(items: Items, store: ResponseStore, owner: str) -> Items:
    """The items with those that they refer to in the place of references, which are left out if nothing is kept."""
    found = []
    known: dict[str | None, Item] = {}
    for item in items:
        if item.type != "item_reference":
            found.append(item)
            continue
        if item.id and item.id not in known and (entry := store.with_item(item.id, owner)):
            known |= {one.id: one for one in _items.decode(entry.items) if one.id}
        if item.id in known:
            found.append(known[item.id])
        else:
            left_out.note("item", "item_reference")
    return found


def _told(item: Item) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(item)
    return {key: value for key, value in told.items() if value is not None}
