"""``GET /openapi.json``: every endpoint, from the tables beside the APIs."""

import functools

import msgspec
from sanic import HTTPResponse
from sanic.response import raw

from plimsoll import __version__
from plimsoll.http.app_state import App, AppState
from plimsoll.http.limits.body_budget import HttpRequest
from plimsoll.http.openapi import anthropic, feed, known_model_list, ollama, openai, server, stored_responses
from plimsoll.http.openapi.schema import JSON, document

PATH = "/openapi.json"
_INFO = {
    "title": "Plimsoll",
    "version": __version__,
    "summary": "An MLX API server that does not run out of memory",
    "description": "The OpenAI, Anthropic and Ollama APIs, health and administration. Unknown parameters are ignored, "
    "null means the default. Of a stream (text/event-stream, application/x-ndjson) the schema is that of one event "
    "or line; OpenAI's end with the event `[DONE]`.",
    "license": {"name": "MIT", "identifier": "MIT"},
}


def add_routes(app: App, _state: AppState) -> None:
    """Register this module's endpoint."""
    app.add_route(_document, PATH, methods=["GET", "HEAD"], name="openapi")


@functools.cache
def encoded() -> bytes:
    """The document, made once."""
    parts = (openai, stored_responses, known_model_list, anthropic, ollama, server, feed)
    return msgspec.json.encode(document([one for part in parts for one in part.OPERATIONS], _INFO))


async def _document(_request: HttpRequest) -> HTTPResponse:
    return raw(encoded(), content_type=JSON)
