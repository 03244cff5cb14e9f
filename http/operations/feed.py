"""The live feed: one producer for all clients of ``GET /admin/events``; it does nothing while there is no client.

It asks the Supervisor as ``/health`` does, four times a second and at once when the level changes, and sends every
event that the journal records. Each client has a bounded outbox; a client that does not read in time is cut off.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import msgspec

from plimsoll import __version__
from plimsoll.actors.status import LOADED, State, Status
from plimsoll.http.app_state import AppState
from plimsoll.http.operations.admin import models_body
from plimsoll.http.operations.health import Condition, condition, read_status
from plimsoll.http.operations.history import entry_body
from plimsoll.inbox import Inbox
from plimsoll.journal.events import Entry, LevelChanged
from plimsoll.journal.lines import Language
from plimsoll.memory.memory_errors import GIB
from plimsoll.memory.sample import Level

_log = logging.getLogger("plimsoll.http")

KINDS = ("sample", "models", "pulls", "journal")
_EVERY_S = 0.25
_MODELS_EVERY_S = 1.0
# Minutes of samples and events. The buffers of the connection hold more.
_OUTBOX_BYTES = 1 << 18
_CHANGING = (State.LOADING, State.BUSY, State.DRAINING, State.STOPPING)


class Listener:
    """The outbox of one client. ``cut`` is called when it is full, and has to end the connection.

    ``language`` is that of its journal events, None for the log's.
    """

    def __init__(self, kinds: frozenset[str], cut: Callable[[], None], language: Language | None = None) -> None:
        self.kinds = kinds
        self.language = language
        self._cut = cut
        self._inbox = Inbox()
        self._bytes = 0
        self._is_cut = False

    def put(self, data: bytes, number: int = 0) -> None:
        """Queue ``data`` for the client; ``number`` is the id of a journal event, 0 for anything else."""
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
        """The frames since the last call, an empty list after ``silence_s``; the last item of the last list is None."""
        batch = await self._inbox.next_batch(silence_s)
        # Not set to 0, because the inbox gives at most 256 frames at a time.
        self._bytes -= sum(len(item[1]) for item in batch if item)
        return batch


class Feed:
    """The producer; used on the event loop only."""

    def __init__(self, state: AppState) -> None:
        self._state = state
        self._journal = state.system.journal
        self._listeners: set[Listener] = set()
        self._stop: Callable[[], None] = lambda: None
        self._latest: dict[str, bytes] = {}
        self._wake = asyncio.Event()
        self._level = Level.NORMAL
        self._sampled: Any = None
        self._states: Any = None
        self._pulls: Any = None
        self._models_at = 0.0

    @property
    def listeners(self) -> int:
        return len(self._listeners)

    def listen(self, kinds: frozenset[str], cut: Callable[[], None], language: Language | None = None) -> Listener:
        """A new client. It gets the latest frames of ``kinds`` and all later ones, until ``leave`` is called for it."""
        listener = Listener(kinds, cut, language)
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
        """The server stops: end every client's stream."""
        for listener in self._listeners:
            listener.end()

    # ---- while there are clients

    def _start(self) -> None:
        inbox = Inbox()
        unsubscribe = self._journal.subscribe(inbox.send)
        task = asyncio.create_task(self._run(inbox), name="feed")

        def stop() -> None:
            unsubscribe()
            inbox.close()
            task.cancel()
            self._latest.clear()
            self._sampled = self._states = self._pulls = None

        self._stop = stop

    async def _run(self, inbox: Inbox) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass_on(inbox))
                group.create_task(self._poll_forever())
        except Exception:  # noqa: BLE001 - whatever failed, clients must not wait for a feed that sends nothing
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
                    self._send_entry(entry)
                except Exception:  # noqa: BLE001 - one event that can't be shown must not end the feed
                    _log.exception("an event of memory can't be shown: %r", entry)

    async def _poll_forever(self) -> None:
        while True:
            self._wake.clear()
            if any(listener.kinds - {"journal"} for listener in self._listeners):
                await self._poll()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _EVERY_S)

    async def _poll(self) -> None:
        status = await read_status(self._state)
        now = condition(status)
        if now.known:
            self._level = now.known.level
            self._send_models(now.known)
        body = sample_body(now, self._level)
        if (pulls := self._state.downloads.told()) != self._pulls:
            self._pulls = pulls
            self._send("pulls", frame("pulls", {"pulls": pulls}))
        moment = now.sample.time_s if now.sample else 0.0
        if (moment, body) != self._sampled:
            self._sampled = moment, body
            self._send("sample", frame("sample", {"at": epoch(moment or time.monotonic()), **body}))

    def _send_models(self, status: Status) -> None:
        now = time.monotonic()
        states = (
            status.pinned,
            [(one.name, one.state, one.pinned, one.error) for one in status.models],
            self._state.catalog.names(),  # a download or a reload brings new ones
        )
        changing = any(
            one.state in _CHANGING or (one.state in LOADED and one.idle_ttl_s is not None) for one in status.models
        )
        if states != self._states or (changing and now - self._models_at >= _MODELS_EVERY_S):
            self._states, self._models_at = states, now
            self._send("models", frame("models", models_body(status, self._state.catalog)))

    def _send_entry(self, entry: Entry) -> None:
        frames: dict[Language, bytes] = {}
        for listener in self._listeners:
            if "journal" not in listener.kinds:
                continue
            language = listener.language or self._journal.language
            if language not in frames:
                frames[language] = entry_frame(entry, language)
            listener.put(frames[language], entry.id)

    def _send(self, kind: str, data: bytes) -> None:
        self._latest[kind] = data
        for listener in self._listeners:
            if kind in listener.kinds:
                listener.put(data)


def frame(name: str, body: dict[str, Any], number: int = 0) -> bytes:
    """One server-sent event; a client that reconnects sends its ``number`` as ``Last-Event-ID``."""
    head = f"id: {number}\nevent: {name}" if number else f"event: {name}"
    return head.encode() + b"\ndata: " + msgspec.json.encode(body) + b"\n\n"


def entry_frame(entry: Entry, language: Language) -> bytes:
    return frame("journal", entry_body(entry, language), entry.id)


def hello_frame(state: AppState) -> bytes:
    memory = state.config.memory
    thresholds = {
        "warning": memory.warning_percent,
        "critical": memory.critical_percent,
        "emergency": memory.emergency_percent,
    }
    body = {
        "version": __version__,
        "started_at": state.created,
        "now": round(time.time(), 3),
        "pid": os.getpid(),
        "thresholds": thresholds,
        "limit_gb": None if memory.limit is None else round(memory.limit / GIB, 2),
        "last_event": state.system.journal.last_id,
    }
    return frame("hello", body)


def sample_body(now: Condition, level: Level) -> dict[str, Any]:
    """The body of a sample; ``level`` is the last known level. Figures that can't be read are null."""
    known, sample = now.known, now.sample
    binding = sample.binding if sample else None
    seconds = known.seconds_to_critical if known else None
    return {
        "level": level.name.lower(),
        "percent": round(binding.percent, 2) if binding else None,
        "source": binding.source if binding else None,
        "sources": {
            one.source: {"percent": round(one.percent, 2), "used": one.used, "total": one.total}
            for one in (sample.readings if sample else ())
        },
        "used": binding.used if binding else None,
        "total": binding.total if binding else None,
        "front": sample.footprints.get(os.getpid(), 0) if sample else 0,
        "models": {name: held for name, held in known.footprints.items() if held} if known else {},
        "lag_ms": round(1000 * known.sampler_lag_s, 1) if known else None,
        "admission": known.admission if known else "closed",
        "status": now.word,
        "problems": now.problems,
        "seconds_to_critical": None if seconds is None else round(seconds, 1),
    }


def epoch(time_s: float) -> float:
    """A time of the monotonic clock in seconds since the epoch."""
    return round(time.time() - time.monotonic() + time_s, 3)
