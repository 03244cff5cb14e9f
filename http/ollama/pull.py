"""Ollama's pull: download the files of a model, and report the progress."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

from sanic import HTTPResponse

from plimsoll.actors.replies import Failed, Finished, Waiting
from plimsoll.catalog import CatalogModel, default_cache_dir, place, resolve
from plimsoll.catalog.disk import DISK, DiskSilent
from plimsoll.catalog.installed import installed
from plimsoll.engine.protocol import Usage
from plimsoll.errors import LoadFailed, UnknownModel
from plimsoll.http.app_state import App, AppState
from plimsoll.http.disk_reads import ANSWER_S
from plimsoll.http.errors import as_plimsoll, respond
from plimsoll.http.limits.body_budget import HttpRequest
from plimsoll.http.ollama.answers import NDJSON, error_line, line
from plimsoll.http.ollama.keep_alive import find
from plimsoll.http.ollama.models import parse_name
from plimsoll.inbox import Inbox

_SUCCESS = {"status": "success"}


def add_routes(app: App, state: AppState) -> None:
    """Register this module's endpoint."""
    api = _Pull(state)
    app.add_route(api.pull, "/api/pull", methods=["POST"], name="ollama_pull")


class _Pull:
    def __init__(self, state: AppState) -> None:
        self._state = state
        # The clients that follow each running download. There is one thread per model, however many clients ask.
        self._listeners: dict[str, list[Inbox]] = {}
        self._lock = threading.Lock()

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
        with contextlib.closing(self._listen(model)) as inbox:
            while True:
                batch = await inbox.next_batch(keepalive_s)
                for item in batch:
                    if isinstance(item, Failed):
                        raise item.error
                    if isinstance(item, Finished):
                        await self._offer()
                        return
                    last = _step(item)
                    yield last
                if not batch:
                    yield last  # repeated, so that proxies keep the stream open

    async def _offer(self) -> None:
        """Look at the folders of models at once: a repo that no entry names is offered once its files are there."""
        if look := self._state.catalog.look_again():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.wrap_future(look), ANSWER_S)

    def _listen(self, model: CatalogModel) -> Inbox:
        inbox, name = Inbox(), model.source.name
        with self._lock:
            first = name not in self._listeners
            self._listeners.setdefault(name, []).append(inbox)
        if first:
            # A thread of its own, for the default executor has few. It goes on when the client leaves, as a load does.
            threading.Thread(target=self._fetch, args=(model,), name="plimsoll-pull", daemon=True).start()
        return inbox

    def _fetch(self, model: CatalogModel) -> None:
        source, models = model.source, self._state.config.models
        cache_dir = default_cache_dir(self._state.config)

        def progress(stage: str, done: int, total: int) -> None:
            self._tell(source.name, Waiting(stage, done, total))

        ending: Failed | Finished = Finished("stop", Usage())
        try:
            # A first look at the disk, which is quick or hangs; the download behind it may take hours.
            if not DISK.answer(place(source, cache_dir), lambda: installed(source, cache_dir), ANSWER_S):
                resolve(source, cache_dir=cache_dir, offline=models.offline, progress=progress)
        except DiskSilent as error:
            ending = Failed(LoadFailed(f"{source.name} can't be pulled: {error}", retry_after_s=5.0))
        except Exception as error:  # noqa: BLE001 - it is told to the clients that follow
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
