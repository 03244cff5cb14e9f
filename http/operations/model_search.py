"""``GET /admin/search``: models of the Hugging Face hub by words, those that fit this machine first."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from sanic import HTTPResponse

from plimsoll.catalog.hub_search import ranked, refuse_offline, search_in_child
from plimsoll.errors import BadRequest, Unavailable
from plimsoll.http.app_state import App, AppState
from plimsoll.http.errors import respond
from plimsoll.http.limits.body_budget import HttpRequest
from plimsoll.http.operations.health import need_status
from plimsoll.memory.ledger import most_bytes

MOST_ROWS = 100
_DEFAULT_ROWS = 20
_MOST_WORDS = 200
# Each search is a child process for up to 15 s; more wait.
_AT_ONCE = 2


def add_routes(app: App, state: AppState) -> None:
    """Register this module's endpoint."""
    turns = asyncio.Semaphore(_AT_ONCE)

    async def search(request: HttpRequest) -> HTTPResponse:
        words, limit = _asked(request)
        refuse_offline(state.config.models)
        sample = (await need_status(state)).sample
        if sample is None:
            raise Unavailable("memory has not been read yet, so what fits is not known", retry_after_s=1.0)
        budget = most_bytes(sample, state.config.memory.critical_percent)
        async with turns:
            found = await asyncio.wrap_future(_on_a_thread(lambda: search_in_child(words, limit)))
        return respond(200, {"budget_bytes": budget, "models": [row._asdict() for row in ranked(found, budget)]})

    app.add_route(search, "/admin/search", methods=["GET", "HEAD"], name="admin_search")


def _asked(request: HttpRequest) -> tuple[str, int]:
    words = " ".join(request.args.get("words", "").split())
    if not 0 < len(words) <= _MOST_WORDS or not words.isprintable():
        raise BadRequest(
            f"say which words: GET /admin/search?words=WORDS, at most {_MOST_WORDS} characters", param="words"
        )
    text = str(request.args.get("limit", _DEFAULT_ROWS))
    if not text.isdecimal() or not 1 <= int(text[:9]) <= MOST_ROWS:
        raise BadRequest(f"limit is {text[:60]!r}, but must be 1 to {MOST_ROWS}", param="limit")
    return words, int(text)


def _on_a_thread(work: Callable[[], Any]) -> "Future[Any]":
    """On a daemon: the server ends without a search that is under way, and its child ends with it."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001 - it is who asked that is told
            future.set_exception(error)

    threading.Thread(target=run, name="plimsoll-search", daemon=True).start()
    return future
