"""Ollama's pull: bring the files of a model of the catalog here, and say how far that is."""

import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

from sanic import HTTPResponse

from plimsoll.actors.messages import Failed, Finished, Waiting
from plimsoll.catalog import CatalogModel, default_cache_dir, installed, resolve
from plimsoll.engine.protocol import Usage
from plimsoll.http.errors import as_plimsoll, respond
from plimsoll.http.front import AnyRequest, App, Front
from plimsoll.http.ollama.errors import error_line
from plimsoll.http.ollama.frames import NDJSON, line
from plimsoll.http.ollama.lease import find
from plimsoll.http.ollama.models import parse_name
from plimsoll.http.stream import Inbox

_SUCCESS = {"status": "success"}


def add_routes(app: App, front: Front) -> None:
    """Register this module's endpoint."""
    api = _Pull(front)
    app.add_route(api.pull, "/api/pull", methods=["POST"], name="ollama_pull")


class _Pull:
    def __init__(self, front: Front) -> None:
        self._front = front
        # Who listens to each running fetch: one thread per model, however many ask for it.
        self._listeners: dict[str, list[Inbox]] = {}
        self._lock = threading.Lock()

    async def pull(self, request: AnyRequest) -> HTTPResponse | None:
        body = parse_name(request)
        model = find(self._front, body.model)
        if body.stream is False:
            async for _ in self._progress(model):
                pass
            return respond(200, _SUCCESS)
        response = await request.respond(content_type=NDJSON)
        await response.send(line({"status": "pulling manifest"}))
        try:
            async for step in self._progress(model):
                await response.send(line(step))
        except Exception as error:  # noqa: BLE001 - the status is sent: whatever it is must be a line
            told = as_plimsoll(error, request.path)
            self._front.recorder.error(told.code)
            await response.send(error_line(told))
        else:
            await response.send(line(_SUCCESS))
        await response.send(end_stream=True)
        return None

    async def _progress(self, model: CatalogModel) -> AsyncIterator[dict[str, Any]]:
        last: dict[str, Any] = {"status": "pulling manifest"}
        keepalive_s = self._front.config.server.keepalive
        with contextlib.closing(self._listen(model)) as inbox:
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
                    yield last  # said again, so that proxies keep the stream open

    def _listen(self, model: CatalogModel) -> Inbox:
        inbox, name = Inbox(), model.source.name
        with self._lock:
            first = name not in self._listeners
            self._listeners.setdefault(name, []).append(inbox)
        if first:
            # Not in the default executor, which has few threads. It goes on when the client leaves, as a load does.
            threading.Thread(target=self._fetch, args=(model,), name="plimsoll-pull", daemon=True).start()
        return inbox

    def _fetch(self, model: CatalogModel) -> None:
        source, models = model.source, self._front.config.models
        cache_dir = default_cache_dir(self._front.config)

        def progress(stage: str, done: int, total: int) -> None:
            self._tell(source.name, Waiting(stage, done, total))

        ending: Failed | Finished = Finished("stop", Usage())
        try:
            if not installed(source, cache_dir):
                resolve(source, cache_dir=cache_dir, offline=models.offline, progress=progress)
        except Exception as error:  # noqa: BLE001 - the listeners tell it
            ending = Failed(as_plimsoll(error, f"the pull of {source.name}"))
        self._tell(source.name, ending)

    def _tell(self, name: str, item: Waiting | Failed | Finished) -> None:
        with self._lock:
            listeners = list(self._listeners[name])
            if not isinstance(item, Waiting):
                del self._listeners[name]
        for inbox in listeners:
            inbox.send(item)


def _step(item: Waiting) -> dict[str, Any]:
    status = {"fetch": "pulling model files", "convert": "converting to MLX"}.get(item.stage, item.stage)
    return {"status": status, "completed": item.done} | ({"total": item.total} if item.total else {})
