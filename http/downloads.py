"""The downloads of models that clients have asked for: one thread for each, which any number of clients follow."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from plimsoll.actors.replies import Failed, Finished, Waiting
from plimsoll.catalog.disk import DISK, DiskSilent
from plimsoll.catalog.entries import CatalogModel
from plimsoll.catalog.fetch import resolve
from plimsoll.catalog.installed import default_cache_dir, installed, place
from plimsoll.catalog.names import Catalog
from plimsoll.config import Config
from plimsoll.engine.protocol import Usage
from plimsoll.errors import LoadFailed
from plimsoll.http.disk_reads import ANSWER_S
from plimsoll.http.errors import as_plimsoll
from plimsoll.inbox import Inbox

_ENDED_KEPT = 8


class Download(msgspec.Struct):
    """How far a download is, in bytes of its stage (fetch, convert); ``error`` says why it failed."""

    model: str
    begun_at: float
    stage: str = ""
    completed: int = 0
    total: int = 0
    done: bool = False
    error: str | None = None


class Downloads:
    """Safe from any thread; ``config`` and ``catalog`` give those in force.

    A download goes on when its clients leave, as a load does. The newest ended ones are remembered.
    """

    def __init__(self, config: Callable[[], Config], catalog: Callable[[], Catalog]) -> None:
        self._config = config
        self._catalog = catalog
        # The clients that follow each running download. There is one thread per model, however many clients ask.
        self._listeners: dict[str, list[Inbox]] = {}
        self._known: dict[str, Download] = {}
        self._lock = threading.Lock()

    def follow(self, model: CatalogModel) -> Inbox:
        """Fetch ``model`` or follow its running download: the inbox gets its steps, then ``Failed`` or ``Finished``."""
        inbox, name = Inbox(), model.source.name
        with self._lock:
            first = name not in self._listeners
            self._listeners.setdefault(name, []).append(inbox)
            if first:
                self._known.pop(name, None)
                self._known[name] = Download(name, round(time.time(), 3))
        if first:
            # A thread of its own, for the default executor has few.
            threading.Thread(target=self._fetch, args=(model,), name="plimsoll-pull", daemon=True).start()
        return inbox

    def told(self) -> list[dict[str, Any]]:
        """Every download that runs, and the newest ones that have ended, oldest first."""
        with self._lock:
            told: list[dict[str, Any]] = msgspec.to_builtins(list(self._known.values()))
        return told

    def _fetch(self, model: CatalogModel) -> None:
        source, config = model.source, self._config()
        cache_dir = default_cache_dir(config)

        def progress(stage: str, done: int, total: int) -> None:
            self._tell(source.name, Waiting(stage, done, total))

        ending: Failed | Finished = Finished("stop", Usage())
        try:
            # A first look at the disk, which is quick or hangs; the download behind it may take hours.
            if not DISK.answer(place(source, cache_dir), lambda: installed(source, cache_dir), ANSWER_S):
                resolve(source, cache_dir=cache_dir, offline=config.models.offline, progress=progress)
            # A repo that no entry names is offered once its folder was looked at.
            if look := self._catalog().look_again():
                with contextlib.suppress(TimeoutError):
                    look.result(ANSWER_S)
        except DiskSilent as error:
            ending = Failed(LoadFailed(f"{source.name} can't be pulled: {error}", retry_after_s=5.0))
        except Exception as error:  # noqa: BLE001 - it is told to the clients that follow
            ending = Failed(as_plimsoll(error, f"the pull of {source.name}"))
        self._tell(source.name, ending)

    def _tell(self, name: str, item: Waiting | Failed | Finished) -> None:
        with self._lock:
            listeners = list(self._listeners[name])
            download = self._known[name]
            if isinstance(item, Waiting):
                download.stage, download.completed, download.total = item.stage, item.done, item.total
            else:
                del self._listeners[name]
                download.done = isinstance(item, Finished)
                download.error = item.error.message if isinstance(item, Failed) else None
                self._forget()
        for inbox in listeners:
            inbox.send(item)

    def _forget(self) -> None:
        ended = [name for name in self._known if name not in self._listeners]
        for name in ended[:-_ENDED_KEPT]:
            del self._known[name]
