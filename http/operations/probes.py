"""Answers to clients that look whether a server is there, at paths that otherwise have nothing to read."""

from sanic import HTTPResponse

from plimsoll.http.app_state import App, AppState
from plimsoll.http.errors import respond
from plimsoll.http.limits.body_budget import HttpRequest

PATHS = ("/v1", "/v1/messages", "/api")
_HERE = {"message": "Plimsoll is running; GET /openapi.json says what can be asked."}


def add_routes(app: App, _state: AppState) -> None:
    """Register this module's endpoints."""
    for path in PATHS:
        app.add_route(_here, path, methods=["GET", "HEAD"], name=f"probe_{path.replace('/', '_')}")


async def _here(_request: HttpRequest) -> HTTPResponse:
    return respond(200, _HERE)
