"""The newest requests and the tokens of the last days, for administration and the page."""

from typing import Any

import msgspec
from sanic import HTTPResponse

from plimsoll.errors import BadRequest
from plimsoll.http.access.permissions import Role
from plimsoll.http.app_state import App, AppState
from plimsoll.http.errors import respond
from plimsoll.http.limits.body_budget import HttpRequest
from plimsoll.http.operations.history import read_journal
from plimsoll.http.request_log import NEWEST, row_of, spans_of
from plimsoll.journal import read

_FILTERS = ("model", "key", "api", "outcome")
_FLUSH_S = 0.5
_MOST_DAYS = 366


class UnknownRequest(BadRequest):
    """Its id is none of those that are kept."""

    status = 404
    code = "request_not_found"


def add_routes(app: App, state: AppState) -> None:
    """Register this module's endpoints."""
    log, journal = state.recorder.log, state.system.journal

    async def requests(request: HttpRequest) -> HTTPResponse:
        limit = _count(request, "limit", 200, NEWEST)
        chosen = log.select(**{name: request.args.get(name) for name in _FILTERS})
        return respond(200, {"requests": [row_of(ended) for ended, _ in zip(chosen, range(limit), strict=False)]})

    async def one(request: HttpRequest, request_id: str) -> HTTPResponse:
        found = log.find(request_id)
        if found is None:
            raise UnknownRequest(f"none of the newest {NEWEST} requests has the id {request_id[:60]!r}", param="id")
        ended, texts = found
        body: dict[str, Any] = row_of(ended) | {"spans": msgspec.to_builtins(spans_of(ended))}
        if texts and request.ctx.caller.role is Role.ADMIN:
            body["texts"] = msgspec.to_builtins(texts)
        return respond(200, body)

    async def tokens(request: HttpRequest) -> HTTPResponse:
        days = _count(request, "days", 30, _MOST_DAYS)

        def rows() -> list[read.DayTokens]:
            if not (box := journal.blackbox):
                return []
            box.flush(_FLUSH_S)
            return read.tokens(box.path, days)

        return respond(200, {"days": msgspec.to_builtins(await read_journal(journal, rows))})

    app.add_route(requests, "/admin/requests", methods=["GET", "HEAD"], name="admin_requests")
    app.add_route(one, "/admin/requests/<request_id:str>", methods=["GET", "HEAD"], name="admin_request")
    app.add_route(tokens, "/admin/tokens", methods=["GET", "HEAD"], name="admin_tokens")


def _count(request: HttpRequest, name: str, default: int, most: int) -> int:
    text = str(request.args.get(name, default))
    if not text.isdecimal() or not 1 <= int(text[:9]) <= most:
        raise BadRequest(f"{name} is {text[:60]!r}, but must be 1 to {most}", param=name)
    return int(text)
