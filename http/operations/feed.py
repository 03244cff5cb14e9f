"""The live feed: one producer for everybody who listens to ``GET /admin/events``, at rest while nobody does.

It asks the Supervisor as ``/health`` does, four times a second and at once when the level changes, and passes on what
the journal records. Each listener has a bounded outbox; one that does not read it in time is cut off.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

from plimsoll.actors.messages import LOADED, State, Status
from plimsoll.http.front import Front
from plimsoll.http.operations.admin import models_body
from plimsoll.http.operations.feed_frames import entry_frame, epoch, frame, sample_body
from plimsoll.http.operations.health import condition, read_status
from plimsoll.http.stream import Inbox
from plimsoll.journal.events import Entry, LevelChanged
from plimsoll.memory.sample import Level

_log = logging.getLogger("plimsoll.http")

KINDS = ("sample", "models", "journal")
_EVERY_S = 0.25
_MODELS_EVERY_S = 1.0
# Minutes of samples and events; beside it there are the buffers of the connection itself.
_OUTBOX_BYTES = 1 << 18
_CHANGING = (State.LOADING, State.BUSY, State.DRAINING, State.STOPPING)


class Listener:
    """One connection's outbox. ``cut`` is called when it is full: it has to end the connection."""

    def __init__(self, kinds: frozenset[str], cut: Callable[[], None]) -> None:
        self.kinds = kinds
        self._cut = cut
        self._inbox = Inbox()
        self._bytes = 0
        self._is_cut = False

    def put(self, data: bytes, number: int = 0) -> None:
        """``number`` is the id of a journal event."""
        self._bytes += len(data)
        if self._bytes <= _OUTBOX_BYTES:
            self._inbox.send((number, data))
        elif not self._is_cut:
            _log.info("a listener of /admin/events reads too slowly and is cut off")
            self._is_cut = True
            self._inbox.close()
            self._cut()

    def end(self) -> None:
        """Nothing more comes."""
        self._inbox.send(None)

    async def next_batch(self, silence_s: float) -> list[tuple[int, bytes] | None]:
        """What has come since the last call, an empty list after ``silence_s``; None at the end."""
        batch = await self._inbox.next_batch(silence_s)
        # Not to 0: what piled up comes in portions.
        self._bytes -= sum(len(item[1]) for item in batch if item)
        return batch


class Feed:
    """Lives on the event loop."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._journal = front.system.journal
        self._listeners: set[Listener] = set()
        self._stop: Callable[[], None] = lambda: None
        self._latest: dict[str, bytes] = {}
        self._wake = asyncio.Event()
        self._level = Level.NORMAL
        self._sampled: Any = None
        self._states: Any = None
        self._models_at = 0.0

    @property
    def listeners(self) -> int:
        return len(self._listeners)

    def listen(self, kinds: frozenset[str], cut: Callable[[], None]) -> Listener:
        """Frames of ``kinds`` from now on, beginning with the latest; ``leave`` has to be called in the end."""
        listener = Listener(kinds, cut)
        if not self._listeners:
            self._start()
        self._listeners.add(listener)
        for kind, data in self._latest.items():
            if kind in kinds:
                listener.put(data)
        if not self._latest:
            self._wake.set()
        return listener

    def leave(self, listener: Listener) -> None:
        self._listeners.discard(listener)
        if not self._listeners:
            self._stop()

    def close(self) -> None:
        """The server stops: every listener is told the end."""
        for listener in self._listeners:
            listener.end()

    # ---- while somebody listens

    def _start(self) -> None:
        inbox = Inbox()
        unsubscribe = self._journal.subscribe(inbox.send)
        task = asyncio.create_task(self._run(inbox), name="feed")

        def stop() -> None:
            unsubscribe()
            inbox.close()
            task.cancel()
            self._latest.clear()
            self._sampled = self._states = None

        self._stop = stop

    async def _run(self, inbox: Inbox) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass_on(inbox))
                group.create_task(self._look_again_and_again())
        except Exception:  # noqa: BLE001 - whatever it is, nobody is left listening to a feed that is silent
            _log.exception("the live feed failed; its listeners may connect again")
            self.close()
            self._listeners.clear()
            self._stop()

    async def _pass_on(self, inbox: Inbox) -> None:
        while True:
            entry: Entry
            for entry in await inbox.next_batch():
                if isinstance(entry.event, LevelChanged):
                    self._wake.set()
                try:
                    data = entry_frame(entry, self._journal.language)
                except Exception:  # noqa: BLE001 - one odd event must not end the others
                    _log.exception("an event of memory can't be shown: %r", entry)
                else:
                    self._send("journal", data, entry.id)

    async def _look_again_and_again(self) -> None:
        while True:
            self._wake.clear()
            if any(listener.kinds - {"journal"} for listener in self._listeners):
                await self._look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _EVERY_S)

    async def _look(self) -> None:
        status = await read_status(self._front)
        now = condition(status)
        if now.known:
            self._level = now.known.level
            self._show_models(now.known)
        body = sample_body(now, self._level)
        moment = now.sample.time_s if now.sample else 0.0
        if (moment, body) != self._sampled:
            self._sampled = moment, body
            self._send("sample", frame("sample", {"at": epoch(moment or time.monotonic()), **body}))

    def _show_models(self, status: Status) -> None:
        now = time.monotonic()
        states = status.pinned, [(one.name, one.state, one.pinned, one.error) for one in status.models]
        changing = any(
            one.state in _CHANGING or (one.state in LOADED and one.idle_ttl_s is not None) for one in status.models
        )
        if states != self._states or (changing and now - self._models_at >= _MODELS_EVERY_S):
            self._states, self._models_at = states, now
            self._send("models", frame("models", models_body(status, self._front.catalog.names())))

    def _send(self, kind: str, data: bytes, number: int = 0) -> None:
        if not number:
            self._latest[kind] = data
        for listener in self._listeners:
            if kind in listener.kinds:
                listener.put(data, number)
