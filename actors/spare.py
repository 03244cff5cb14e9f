"""The spare worker: a process without a model, its imports done, so that a load costs reading weights only."""

import logging
from collections.abc import Callable

from plimsoll.actors.messages import Ref, SpareExited, tell
from plimsoll.catalog import CatalogModel
from plimsoll.engine.process import SpawnWorker, Worker
from plimsoll.engine.protocol import ReadAhead
from plimsoll.memory.plan import Need

log = logging.getLogger("plimsoll")


class Spare:
    """At most one, owned by the Supervisor, which hands it over with the grant of a load. Never blocks.

    ``footprint_bytes`` is what the process was last seen to hold.
    """

    def __init__(self, spawn: SpawnWorker, serves: Callable[[CatalogModel], bool], cache_dir: str = "") -> None:
        """``serves`` says whether a model's worker can be made of it; never, where none is wanted."""
        self._cache_dir = cache_dir
        self._spawn = spawn
        self.serves = serves
        self._worker: Worker | None = None
        self._leaving: set[int] = set()
        self.footprint_bytes = 0

    @property
    def pid(self) -> int | None:
        return self._worker.pid if self._worker else None

    @property
    def gone(self) -> bool:
        """Whether no process of this is left."""
        return self._worker is None and not self._leaving

    def order(self, owner: Ref) -> None:
        """Start one, if there is none; ``owner`` hears of its end."""
        if self._worker is not None:
            return
        pid = 0

        def on_exit(_code: int, _oom_killed: bool) -> None:
            tell(owner, SpareExited(pid))

        try:
            self._worker = self._spawn(lambda _event: None, on_exit)
        except OSError as error:
            log.warning("no spare worker can be started: %s; loads take a little longer without one", error)
            return
        pid = self._worker.pid

    def foresee(self, model: CatalogModel) -> None:
        """``model`` is to be loaded: its tokenizer can be read while memory is looked for."""
        if self._worker and self.serves(model):
            self._worker.send(ReadAhead(model.source, self._cache_dir))

    def for_load(self, model: CatalogModel, need: Need) -> Worker | None:
        """Hand it over for this load, if it is of use to it: what fetches files needs none that is made ready."""
        return self.take() if need.weights_bytes and self.serves(model) else None

    def take(self) -> Worker | None:
        """Hand it over, if there is one."""
        worker, self._worker = self._worker, None
        self.footprint_bytes = 0
        return worker

    def dismiss(self) -> None:
        """Its memory is wanted; it holds nothing that would need an orderly end."""
        if worker := self.take():
            self._leaving.add(worker.pid)
            worker.kill()

    def exited(self, pid: int) -> None:
        """A process that was one has ended."""
        self._leaving.discard(pid)
        if self.pid == pid:
            self.take()
