"""What all handlers share: the configuration, the actors, the catalog, and how many answers are running."""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from sanic import Sanic

from plimsoll.actors.messages import Ref
from plimsoll.catalog.entries import CatalogModel
from plimsoll.catalog.names import Catalog
from plimsoll.config import Config
from plimsoll.errors import ShuttingDown, Unavailable, UnknownModel
from plimsoll.http import left_out
from plimsoll.http.downloads import Downloads
from plimsoll.http.limits.body_budget import BodyBudget, HttpRequest
from plimsoll.http.limits.connection_slots import ConnectionSlots
from plimsoll.http.os_settings import trim_heap
from plimsoll.http.recorder import Recorder
from plimsoll.http.request_log import EndedRequest, RequestLog
from plimsoll.http.response_folder import ResponseFolder, responses_folder
from plimsoll.http.response_store import ResponseStore
from plimsoll.journal.journal import Journal
from plimsoll.memory.ledger import Need
from plimsoll.memory.sample import Sample

App = Sanic[Any, Any]


class Actors(Protocol):
    """``plimsoll.actors.system.ActorSystem`` as the front end sees it; ``start`` and ``stop`` block."""

    supervisor: Ref
    journal: Journal

    def start(self) -> None: ...
    def stop(self, grace_s: float) -> None: ...
    def weigh(self, model: CatalogModel) -> "Future[tuple[Need, ...]]":
        """The ways to load ``model``, known once the headers of its files were read."""


# How long a request for an unknown name waits until the folders of models were looked at again.
_LOOK_AGAIN_S = 2.0


class AppState:
    """The state of the front end, at ``app.ctx.state``; used on the event loop only.

    ``sample`` is the newest reading of memory that the Supervisor has told, None before the first. ``failure`` says why
    the server ends, if it ends for a failure.
    """

    def __init__(self, config: Config, system: Actors, catalog: Catalog) -> None:
        self.config = config
        self.system = system
        self.catalog = catalog
        journal = system.journal
        self.recorder = Recorder(log=RequestLog(lambda ended: _count_tokens(journal, ended)))
        self.left_out = left_out.LeftOut()
        self.downloads = Downloads(lambda: self.config, lambda: self.catalog)
        self.sample: Sample | None = None
        self.slots = ConnectionSlots(config.limits.connections, time.monotonic)
        self.bodies = BodyBudget(int(config.server.max_body), self._available, trim_heap)
        folder = responses_folder(config.server.responses_folder)
        kept_in = ResponseFolder(folder) if folder else None
        self.responses = ResponseStore(int(config.limits.stored_responses), kept_in)
        self.started_s = time.monotonic()
        self.created = int(time.time())
        self.stopping = False
        self.failure = ""
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def supervisor(self) -> Ref:
        return self.system.supervisor

    def _available(self) -> int | None:
        """Free bytes of the fullest source of memory but GPUs; None before the first sample."""
        readings = self.sample.readings if self.sample else ()
        return min((one.available for one in readings if not one.on_device), default=None)

    async def find(self, *names: str) -> CatalogModel:
        """The model of the first of ``names`` that exists. If none does, the folders of models are looked at once more.

        A name may have Ollama's ``:latest`` behind it.

        Raises:
            UnknownModel: no model has any of the names; the message is that for the last name.
            Unavailable: the disk does not answer, so nobody knows whether there is a model of these names.

        """
        with contextlib.suppress(UnknownModel):
            return self.catalog.find(names[0])
        names = tuple(dict.fromkeys(one for name in names for one in (name, name.removesuffix(":latest"))))
        with contextlib.suppress(UnknownModel):
            return self._find(names)
        if look := self.catalog.look_again():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.wrap_future(look), _LOOK_AGAIN_S)
        try:
            return self._find(names)
        except UnknownModel:
            for name in names:
                if why := self.catalog.unsure(name):
                    text = f"whether there is a model {name[:200]!r} can't be told now: {why}"
                    raise Unavailable(text, param="model", retry_after_s=5.0) from None
            raise

    def _find(self, names: Sequence[str]) -> CatalogModel:
        for name in names[:-1]:
            with contextlib.suppress(UnknownModel):
                return self.catalog.find(name)
        return self.catalog.find(names[-1])

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count one more running answer, which a graceful stop waits for."""
        self._running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def drained(self, timeout_s: float) -> bool:
        """Wait until no answer is running; False when ``timeout_s`` was not enough."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        return self._idle.is_set()

    def count_left_out(self, _request: HttpRequest) -> None:
        """Request middleware: what is left out of the request is counted here."""
        left_out.count_in(self.left_out)

    def refuse_when_stopping(self, request: HttpRequest) -> None:
        """Request middleware: once the server stops, only health probes are answered. Raises ``ShuttingDown``."""
        if self.stopping:
            stream: Any = request.stream  # Sanic's HTTP/1 one
            stream.keep_alive = False
            if not request.path.startswith("/health"):
                raise ShuttingDown("the server is shutting down", retry_after_s=5)


def _count_tokens(journal: Journal, ended: EndedRequest) -> None:
    figures = (ended.prompt_tokens, ended.reused_tokens, ended.completion_tokens)
    journal.tokens(ended.model, ended.key, figures)
