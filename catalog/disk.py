"""Threads for work on disks: a disk may never answer, and then only the caller that asked waits for it.

A thread that is in a system call on a dead mount can't be ended. So none is lent to whoever asks, nor is there a pool
that all share: every folder that models lie in has a few threads of its own, and what hangs there holds only those.
"""

import collections
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

LATE_S = 5.0
"""A question without an answer for this long counts as silence. A disk that has to spin up may take longer."""

# Reads of one folder at the same time, and so the threads that a dead disk can hold for each of its folders.
_AT_ONCE = 8

_T = TypeVar("_T")


class Place(NamedTuple):
    """What is read, a file or a folder, and the ``folder`` that it shares threads with."""

    path: str
    folder: str


class DiskSilent(OSError):
    """The disk has not answered; the message says which, since when, and what to do."""


class _Job(NamedTuple):
    place: Place
    work: Callable[[], Any]
    future: "Future[Any]"


class _Folder:
    """The reads of one folder that have begun, since when, and the reads that wait for them."""

    __slots__ = ("begun", "waiting")

    def __init__(self) -> None:
        self.begun: dict[Future[Any], tuple[str, float]] = {}
        self.waiting: collections.deque[_Job] = collections.deque()

    def reads(self, path: str) -> bool:
        """Whether a thread reads it now. Another read of it waits, or what hangs would take thread after thread."""
        return any(begun == path for begun, _ in self.begun.values())


class Disk:
    """Safe from any thread; ``ask`` never waits for a disk."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._folders: dict[str, _Folder] = {}

    def ask(self, place: Place, work: Callable[[], _T]) -> "Future[_T]":
        """Have ``work`` done on a thread of the place's folder; its answer, or what it raises, is the future's.

        Fails at once with ``DiskSilent`` where the place or its whole folder has not answered for ``LATE_S``: a dead
        disk takes one thread for each thing that hangs, however often it is asked for.
        """
        (future,) = self.ask_each([(place, work)])
        return future

    def ask_each(self, questions: Iterable[tuple[Place, Callable[[], _T]]]) -> "list[Future[_T]]":
        """As ``ask`` for each of them, with a few threads for all."""
        jobs = [_Job(place, work, Future()) for place, work in questions]
        begun: list[_Job] = []
        refused: list[tuple[_Job, float]] = []
        with self._lock:
            for job in jobs:
                folder = self._folders.setdefault(job.place.folder, _Folder())
                if (silent_s := self._silent_s(folder, job.place)) is not None:
                    refused.append((job, silent_s))
                elif len(folder.begun) < _AT_ONCE and not folder.reads(job.place.path):
                    folder.begun[job.future] = (job.place.path, self._clock())
                    begun.append(job)
                else:
                    folder.waiting.append(job)
        for job, silent_s in refused:
            job.future.set_exception(DiskSilent(_sentence(job.place.path, silent_s)))
        for job in begun:
            # Daemons: the process ends without those that hang.
            threading.Thread(target=self._read_forever, args=(job,), name="plimsoll-disk", daemon=True).start()
        return [job.future for job in jobs]

    def answer(self, place: Place, work: Callable[[], _T], limit_s: float) -> _T:
        """As ``ask``, waiting for the answer. Raises ``DiskSilent`` after ``limit_s``, and what ``work`` raises."""
        future = self.ask(place, work)
        try:
            return future.result(limit_s)
        except TimeoutError:
            if future.done():  # a file system may raise the same
                raise
            future.cancel()
            raise DiskSilent(_sentence(place.path, limit_s)) from None

    def silent(self) -> dict[str, float]:
        """Every path that has not answered for ``LATE_S``, and for how many seconds."""
        with self._lock:
            begun = [one for folder in self._folders.values() for one in folder.begun.values()]
        now = self._clock()
        return {path: now - since for path, since in sorted(begun, reverse=True) if now - since > LATE_S}

    def _silent_s(self, folder: _Folder, place: Place) -> float | None:
        """For how long the place has been silent; None where it may be asked."""
        now = self._clock()
        late = {path: now - since for path, since in folder.begun.values() if now - since > LATE_S}
        for path in (place.path, place.folder):
            if path in late:
                return late[path]
        return min(late.values()) if len(late) >= _AT_ONCE else None

    def _read_forever(self, job: _Job | None) -> None:
        while job is not None:
            if job.future.set_running_or_notify_cancel():
                try:
                    answer = job.work()
                except BaseException as error:  # noqa: BLE001 - it is who asked that is told
                    job.future.set_exception(error)
                else:
                    job.future.set_result(answer)
            job = self._next(job)

    def _next(self, done: _Job) -> _Job | None:
        """What this thread does now; None where nothing of the folder waits."""
        with self._lock:
            folder = self._folders[done.place.folder]
            del folder.begun[done.future]
            if job := next((one for one in folder.waiting if not folder.reads(one.place.path)), None):
                folder.waiting.remove(job)
                folder.begun[job.future] = (job.place.path, self._clock())
                return job
            if not folder.begun:
                del self._folders[done.place.folder]
            return None


def _sentence(path: str, silent_s: float) -> str:
    return f"{path} has not answered for {silent_s:.0f} s; look at the disk or the network share that it is on"


DISK = Disk()
"""The process's own: its threads are."""
