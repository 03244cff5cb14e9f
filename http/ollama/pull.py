"""Ollama's pull: download the files of a model, and report the progress."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from sanic import HTTPResponse

from plimsoll.actors.replies import Failed, Finished, Waiting
from plimsoll.catalog.entries import CatalogModel
from plimsoll.errors import UnknownModel
from plimsoll.http.app_state import App, AppState
from plimsoll.http.errors import as_plimsoll, respond
from plimsoll.http.limits.body_budget import HttpRequest
from plimsoll.http.ollama.answers import NDJSON, error_line, line
from plimsoll.http.ollama.keep_alive import find
from plimsoll.http.ollama.models import parse_name

_SUCCESS = {"status": "success"}


def add_routes(app: App, state: AppState) -> None:
    """Register this module's endpoint."""
    api = _Pull(state)
    app.add_route(api.pull, "/api/pull", methods=["POST"], name="ollama_pull")


class _Pull:
    def __init__(self, state: AppState) -> None:
        self._state = state

    async def pull(self, request: HttpRequest) -> HTTPResponse | None:
        body = parse_name(request)
        try:
            model = await find(self._state, body.model)
        except UnknownModel as unknown:
            try:
                model = self._state.catalog.fetchable(body.model)
            except UnknownModel:
                raise unknown from None  # its sentence is the one that Ollama's clients look for
        if body.stream is False:
            async for _ in self._progress(model):
                pass
            return respond(200, _SUCCESS)
        response = await request.respond(content_type=NDJSON)
        await response.send(line({"status": "pulling manifest"}))
        try:
            async for step in self._progress(model):
                await response.send(line(step))
        except Exception as error:  # noqa: BLE001 - status 200 is sent already, so any error has to become a line
            told = as_plimsoll(error, request.path)
            self._state.recorder.error(told.code)
            await response.send(error_line(told))
        else:
            await response.send(line(_SUCCESS))
        await response.send(end_stream=True)
        return None

    async def _progress(self, model: CatalogModel) -> AsyncIterator[dict[str, Any]]:
        last: dict[str, Any] = {"status": "pulling manifest"}
        keepalive_s = self._state.config.server.keepalive
        with contextlib.closing(self._state.downloads.follow(model)) as inbox:
            while True:
                batch = await inbox.next_batch(keepalive_s)
                for item in batch:
                    if isinstance(item, Failed):
                        raise item.error
                    if isinstance(item, Finished):
                        return
                    last = _step(item)
                    yield last
                if not batch:
                    yield last  # repeated, so that proxies keep the stream open


def _step(item: Waiting) -> dict[str, Any]:
    status = {"fetch": "pulling model files", "convert": "converting to MLX"}.get(item.stage, item.stage)
    return {"status": status, "completed": item.done} | ({"total": item.total} if item.total else {})
