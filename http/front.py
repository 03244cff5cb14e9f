"""What the handlers share: configuration, actors, catalog, and which answers are running."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any, Protocol

from sanic import Request, Sanic

from plimsoll.actors.messages import Ref
from plimsoll.config import Config
from plimsoll.errors import ShuttingDown
from plimsoll.http.operations.recorder import Recorder
from plimsoll.journal.journal import Journal
from plimsoll.memory.plan import Need

App = Sanic[Any, Any]
AnyRequest = Request[Any, Any]


class Actors(Protocol):
    """``plimsoll.actors.system.ActorSystem`` as the front end sees it; ``start`` and ``stop`` block."""

    supervisor: Ref
    journal: Journal

    def start(self) -> None: ...
    def stop(self, grace_s: float) -> None: ...
    def ways_to_load(self, model: Any) -> tuple[Need, ...]:
        """The ways to load a model of the catalog; reads its files' headers."""


class ModelCatalog(Protocol):
    """``plimsoll.catalog.Catalog`` as the front end sees it."""

    def names(self) -> list[str]: ...
    def find(self, name: str) -> Any:
        """The model of that name. Raises ``UnknownModel``."""


class Front:
    """The front end's own state; lives on the event loop."""

    def __init__(self, config: Config, system: Actors, catalog: ModelCatalog) -> None:
        self.config = config
        self.system = system
        self.catalog = catalog
        self.recorder = Recorder()
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

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Around an answer that a graceful stop waits for."""
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

    def refuse_when_stopping(self, request: AnyRequest) -> None:
        """Request middleware: once the server stops, only health is answered. Raises ``ShuttingDown``."""
        if self.stopping:
            stream: Any = request.stream  # Sanic's HTTP/1 one
            stream.keep_alive = False
            if not request.path.startswith("/health"):
                raise ShuttingDown("the server is shutting down", retry_after_s=5)
