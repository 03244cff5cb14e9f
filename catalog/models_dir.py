"""What lies in ``models.dir``: looked at in the background, so that whoever asks for a model waits for no disk."""

import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError, wait
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar

from plimsoll.catalog.disk import DISK, LATE_S, Disk, DiskSilent, Place
from plimsoll.catalog.layouts import Found, look_at
from plimsoll.catalog.source import ModelSource

EVERY_S = 3.0
"""What is new in the folder is found after this long without being asked for."""

# A look waits this long for the folder's names, and again for what lies behind them. Later answers count later.
_ANSWER_S = 1.5
# However many unknown names are asked for, looks begin no closer together than this.
_APART_S = 0.25

log = logging.getLogger("plimsoll.catalog")
_T = TypeVar("_T")


class _Listing(NamedTuple):
    """``root`` is the folder without links; ``paths`` of what lies in it, in the order in which names are taken."""

    root: Path
    paths: tuple[str, ...]


class _Part(Generic[_T]):
    """One path: what it held when it last answered, and since when an answer is waited for."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.held: _T | None = None
        self.held_at = ""
        self.error: OSError | None = None
        self.future: Future[_T] | None = None
        self._asked_at: float | None = None

    def asked(self, future: "Future[_T]") -> None:
        """Keep the question: a path is not asked again before it has answered, for each question holds a thread."""
        self._asked_at = self._asked_at or time.monotonic()
        self.future = future

    def take(self) -> None:
        """Take the answer, if there is one."""
        if self.future is None or not self.future.done():
            return
        error = self.future.exception()
        if isinstance(error, DiskSilent):
            self.future = None
            return  # something else on this path hangs
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            self.held, self.error = None, error
        elif isinstance(error, OSError):
            self.error = error.with_traceback(None)  # a share that broke off: what it held is most likely still there
        elif error is not None:
            log.error("%s can't be looked at", self.path, exc_info=error)
        else:
            self.held, self.error = self.future.result(), None
        self.held_at = time.strftime("%H:%M:%S") if error is None else self.held_at
        self.future = self._asked_at = None

    @property
    def silent_s(self) -> float:
        """For how long an answer is overdue; 0 where none is."""
        asked_at = self._asked_at
        waited_s = 0.0 if asked_at is None else time.monotonic() - asked_at
        return waited_s if waited_s > LATE_S else 0.0

    def problem(self, what: str) -> str:
        """What keeps it from being known as it is now, in a sentence; empty where nothing does."""
        known = f"what it holds is known as of {self.held_at}" if self.held_at else "what it holds is not known"
        if silent_s := self.silent_s:
            return f"{what} has not answered for {silent_s:.0f} s: {known}"
        return f"{what} can't be read ({self.error.strerror or self.error}): {known}" if self.error else ""


class ModelsDir:
    """One folder of models. ``sources``, by name, is replaced and never changed: read it from any thread.

    A folder in it that does not answer, or all of it, keeps what it held when it last did.
    """

    def __init__(
        self,
        path: Path,
        disk: Disk = DISK,
        *,
        optional: bool = False,
        trusted: Callable[[], Sequence[Path]] = tuple,
    ) -> None:
        """Takes the first look. Raises ``FileNotFoundError`` or ``NotADirectoryError`` where there is no folder.

        An ``optional`` folder may be missing, and is looked for from then on. ``trusted`` are more folders without
        links, which links in this folder may lead to; it must not wait for a disk.
        """
        self.path = path
        self.sources: Mapping[str, ModelSource] = MappingProxyType({})
        self._disk = disk
        self._root = _Part[_Listing](str(path))
        # Replaced by each look, for others read it meanwhile.
        self._entries: dict[str, _Part[Found]] = {}
        self._trusted = trusted
        self.optional = optional
        self._told: dict[str, str] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._asked: list[Future[None]] = []
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._look()
        self.refuse_missing()
        self._tell()

    def refuse_missing(self) -> None:
        """Raises ``FileNotFoundError`` or ``NotADirectoryError`` where the last look met no folder."""
        if not self.optional and isinstance(error := self._root.error, FileNotFoundError | NotADirectoryError):
            raise error

    @property
    def root(self) -> Path | None:
        """The folder without links; None while it was never read."""
        return self._root.held.root if self._root.held else None

    @property
    def passed_over(self) -> list[tuple[str, str]]:
        """The path of each thing that looks like a model and is none that can be served, and the reason."""
        return [one for part in self._entries.values() if part.held for one in part.held.passed_over]

    def refresh(self) -> "Future[None]":
        """Ask for a look that begins from now on; done when it is over, after 4 s at most.

        The first call starts the thread that looks every ``EVERY_S`` from then on, and ends with ``close`` or when
        nobody has this object any more. After ``close`` nothing is looked at.
        """
        future: Future[None] = Future()
        with self._lock:
            if self._is_closed:
                future.set_result(None)
                return future
            self._asked.append(future)
            if self._thread is None:
                keep = partial(_keep_fresh, weakref.ref(self), self._wake)
                self._thread = threading.Thread(target=keep, name="plimsoll-models-dir", daemon=True)
                self._thread.start()
        self._wake.set()
        return future

    @property
    def is_closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._is_closed

    def close(self) -> None:
        """Have the thread end after one last look; does not wait for it."""
        with self._lock:
            self._is_closed = True
        self._wake.set()

    def unsure(self, name: str) -> str:
        """Why it is not known whether there is a model of that name; empty where it is."""
        if problem := self._root_problem():
            return problem
        for path, part in self._entries.items():
            stem = Path(path).name.removeprefix("models--").replace("--", "/")
            may_hold = name in (stem, Path(path).stem) or name.startswith(f"{stem}/") or stem.endswith(f"/{name}")
            if part.held is None and may_hold and (problem := part.problem(path)):
                return problem
        return ""

    def problems(self) -> list[str]:
        """A sentence for each thing that can't be looked at."""
        return list(self._problems().values())

    def look(self) -> None:
        """Take one look, and tell those who have asked for it."""
        with self._lock:
            asked, self._asked = self._asked, []
        try:
            self._look()
            self._tell()
        except Exception:
            # Without this thread nothing new is found any more.
            log.exception("models.dir %s can't be looked at", self.path)
        for future in asked:
            with contextlib.suppress(InvalidStateError):  # whoever asked has given up
                future.set_result(None)

    def _look(self) -> None:
        root = self._root
        if root.future is None:
            root.asked(self._disk.ask(Place(root.path, root.path), partial(_list, self.path)))
        _take([root])
        if root.future is None and root.error is None and root.held:
            folder, paths = str(root.held.root), root.held.paths
            entries = {path: self._entries.get(path) or _Part[Found](path) for path in paths}
            free = [part for part in entries.values() if part.future is None]
            roots = (root.held.root, *self._trusted())
            looks = ((Place(part.path, folder), partial(look_at, part.path, roots)) for part in free)
            for part, future in zip(free, self._disk.ask_each(looks), strict=True):
                part.asked(future)
            _take(entries.values())
            self._entries = entries
        elif root.held is None:
            self._entries = {}
        sources: dict[str, ModelSource] = {}
        for part in self._entries.values():
            for source in part.held.sources if part.held else ():
                sources.setdefault(source.name, source)
        if list(sources.items()) != list(self.sources.items()):
            self.sources = MappingProxyType(sources)

    def _tell(self) -> None:
        """Log what has begun to be silent, and what has come back, once each."""
        now = self._problems()
        for what in now.keys() - self._told.keys():
            log.warning("%s; look at the disk or the network share that it is on", now[what])
        for what in self._told.keys() - now.keys():
            log.info("%s answers again", what)
        self._told = now

    def _problems(self) -> dict[str, str]:
        """By what has them."""
        found = {f"models.dir {self.path}": self._root_problem()} | {
            path: part.problem(path) for path, part in self._entries.items()
        }
        return {what: problem for what, problem in found.items() if problem}

    def _root_problem(self) -> str:
        is_missing = isinstance(self._root.error, FileNotFoundError | NotADirectoryError)
        return "" if self.optional and is_missing else self._root.problem(f"models.dir {self.path}")


def all_of(futures: "list[Future[None]]") -> "Future[None]":
    """Done when all of them are."""
    whole: Future[None] = Future()
    left = len(futures)
    lock = threading.Lock()

    def done(_: "Future[None]") -> None:
        nonlocal left
        with lock:
            left -= 1
            is_last = left == 0
        if is_last:
            with contextlib.suppress(InvalidStateError):  # whoever asked has given up
                whole.set_result(None)

    for future in futures:
        future.add_done_callback(done)
    return whole


def _keep_fresh(find: "weakref.ref[ModelsDir]", wake: threading.Event) -> None:
    began = 0.0
    while True:
        wake.wait(EVERY_S)
        wake.clear()  # before the look: who asks from now on has the next one
        models_dir = find()
        if models_dir is None:
            return
        time.sleep(max(0.0, began + _APART_S - time.monotonic()))
        began = time.monotonic()
        is_last = models_dir.is_closed  # read before the look, which answers those who asked until then
        models_dir.look()
        if is_last:
            return
        del models_dir


def _take(parts: Iterable[_Part[Any]]) -> None:
    """Wait for the answers, bounded, and take those that have come."""
    parts = list(parts)
    wait([part.future for part in parts if part.future], _ANSWER_S)
    for part in parts:
        part.take()


def _list(folder: Path) -> _Listing:
    """What may be a model: a folder goes before a file of the same name. Raises ``OSError``."""
    root = folder.resolve()
    with os.scandir(root) as entries:
        found = [one for one in entries if not (one.name.startswith(".") or _is_something_else(one))]
    found.sort(key=lambda one: (one.name.endswith(".gguf"), one.name))
    return _Listing(root, tuple(one.path for one in found))


def _is_something_else(entry: "os.DirEntry[str]") -> bool:
    return not entry.name.endswith(".gguf") and entry.is_file(follow_symlinks=False)
