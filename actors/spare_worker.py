"""The spare worker: a process without a model that has done its imports, so that a load only reads weights."""

import itertools
import logging
from collections.abc import Callable

from plimsoll.actors.messages import Ref, SpareExited, tell
from plimsoll.catalog.entries import CatalogModel
from plimsoll.engine.handle.process import SpawnWorker, Started, Worker
from plimsoll.engine.protocol import Event, LoadError, ReadAhead
from plimsoll.memory.ledger import Need

log = logging.getLogger("plimsoll")


class SpareWorker:
    """At most one spare process; the Supervisor owns it and hands it over with the grant of a load. Never blocks.

    ``footprint_bytes`` is the footprint of the process by the newest sample.
    """

    def __init__(self, spawn: SpawnWorker, serves: Callable[[CatalogModel], bool], cache_dir: str = "") -> None:
        """``serves`` says whether a model may use the spare worker; always False if ``engine.spare_worker`` is off."""
        self._cache_dir = cache_dir
        self._spawn = spawn
        self.serves = serves
        self._worker: Worker | None = None
        # A process has a pid only once it runs, so each order gets a number.
        self._numbers = itertools.count(1)
        self._number = 0
        self._leaving: set[int] = set()
        self.footprint_bytes = 0

    @property
    def pid(self) -> int | None:
        """None if there is no spare worker, and until its process has started."""
        return self._worker.pid if self._worker else None

    @property
    def gone(self) -> bool:
        """Whether no spare process is left, the dismissed ones included."""
        return self._worker is None and not self._leaving

    def order(self, owner: Ref) -> None:
        """Start a spare worker if there is none; ``owner`` gets ``SpareExited`` at its end."""
        if self._worker is not None:
            return
        number = self._number = next(self._numbers)

        def on_event(event: Event | Started) -> None:
            if isinstance(event, LoadError):
                log.warning("no spare worker: %s; loads take a little longer without one", event.message)

        def on_exit(_code: int, _oom_killed: bool) -> None:
            tell(owner, SpareExited(number))

        self._worker = self._spawn(on_event, on_exit)

    def foresee(self, model: CatalogModel) -> None:
        """``model`` will be loaded: read its tokenizer while admission makes room."""
        if self._worker and self.serves(model):
            self._worker.send(ReadAhead(model.source, self._cache_dir))

    def for_load(self, model: CatalogModel, need: Need) -> Worker | None:
        """Hand over the spare worker for this load, or None; a worker that only fetches files needs no imports."""
        return self.take() if need.weights_bytes and self.serves(model) else None

    def take(self) -> Worker | None:
        """Hand over the spare worker if there is one."""
        worker, self._worker = self._worker, None
        self.footprint_bytes = 0
        return worker

    def dismiss(self) -> None:
        """Kill the spare worker because its memory is needed; it holds nothing to be saved."""
        if worker := self.take():
            self._leaving.add(self._number)
            worker.kill()

    def exited(self, number: int) -> None:
        """The process of that number has ended."""
        self._leaving.discard(number)
        if self._number == number:
            self.take()
