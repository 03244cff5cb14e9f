"""Requests between the reader and the step thread: template, tokens, grammar.

Short requests are prepared on the reader thread, in their order. Texts of megabytes and grammars may take seconds, so
other threads prepare them while the reader goes on reading. A grammar gets a short turn on one thread first. A grammar
that needs more, or looks as if it will, gets a long turn on another thread, so that a plain schema never waits behind
a costly one.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from plimsoll.engine.engine import Engine, Unfinished
from plimsoll.engine.protocol import Generate, RequestError
from plimsoll.engine.row_guard import describe
from plimsoll.errors import BadRequest, ContextTooLong

# Tokenising takes 1 us a byte: what is shorter than this keeps the reader for less than 0.1 s.
LONG_BYTES = 64 * 1024
MOST_UNFINISHED = 32
PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that may be submitted."""

    id: str
    prompt: Any


@dataclass(slots=True, eq=False)
class _Open:
    """``unfinished`` since ``since``, or a long text that is being read."""

    id: str
    unfinished: Unfinished | None = None
    since: float = 0.0
    turn: "Future[None] | None" = None


class Preparation:
    """The requests that one worker is preparing; ``deliver`` is called with each result, on any thread.

    Nothing is delivered for a request that was dropped. ``wake`` is called when ``overdue`` has to be polled.
    """

    def __init__(self, deliver: Callable[[Prepared | RequestError], object], wake: Callable[[], object]) -> None:
        self._deliver = deliver
        self._wake = wake
        self._lock = threading.Lock()
        self._open: dict[str, _Open] = {}
        self._long = ThreadPoolExecutor(1, "long-texts")
        self._quick = ThreadPoolExecutor(1, "grammars")
        self._slow = ThreadPoolExecutor(1, "costly-grammars")

    def begin(self, engine: Engine, command: Generate, frame_bytes: int) -> None:
        """Prepare the request, on this thread if its frame is short."""
        one = self._open[command.id] = _Open(command.id)
        if frame_bytes > LONG_BYTES:
            self._send_to(self._long, one, lambda: self._prepare(engine, command, one))
        else:
            self._prepare(engine, command, one)

    def drop(self, request_id: str) -> bool:
        """Forget a request that is being prepared, and stop what is done for it; False where none is."""
        with self._lock:
            one = self._open.pop(request_id, None)
        if one is None:
            return False
        _stop(one)
        return True

    @property
    def unfinished(self) -> int:
        """How many requests wait for their grammars."""
        with self._lock:
            return sum(one.unfinished is not None for one in self._open.values())

    def overdue(self) -> list[RequestError]:
        """Drop the requests that have waited ``PATIENCE_S`` for a grammar thread; returns their errors."""
        if not self._open:
            return []
        now = time.monotonic()
        with self._lock:
            late = [one for one in self._open.values() if one.unfinished and now - one.since > PATIENCE_S]
            for one in late:
                del self._open[one.id]
        for one in late:
            _stop(one)
        return [_busy(one, f"this one has waited {PATIENCE_S:.0f} s for its turn") for one in late]

    def _prepare(self, engine: Engine, command: Generate, one: _Open) -> None:
        self._settle(one, lambda: engine.prepare(command.request, command.so_far))

    def _settle(self, one: _Open, make: Callable[[], Any]) -> None:
        """Deliver the result of ``make`` or its error; an ``Unfinished`` result goes to a grammar thread instead."""
        job: Prepared | RequestError
        try:
            made = make()
        except BadRequest as error:
            code: Any = "context_length_exceeded" if isinstance(error, ContextTooLong) else "invalid_value"
            job = RequestError(one.id, code, describe(error), error.param)
        except BaseException as error:  # noqa: BLE001 - a tokenizer that panics in Rust raises no Exception
            job = RequestError(one.id, "internal_error", f"the prompt can't be tokenised: {describe(error)}")
        else:
            if isinstance(made, Unfinished):
                self._enter(one, made)
                return
            job = Prepared(one.id, made)
        self._finish(one, job)

    def _finish(self, one: _Open, job: Prepared | RequestError) -> None:
        # Under the lock, so that a cancel either still finds the request here or reaches the step thread after it.
        with self._lock:
            if self._open.get(one.id) is one:
                del self._open[one.id]
                self._deliver(job)

    def _enter(self, one: _Open, made: Unfinished) -> None:
        if (waiting := self.unfinished) >= MOST_UNFINISHED:
            self._finish(one, _busy(one, f"{waiting} of them wait, and no more may"))
            return
        with self._lock:
            one.unfinished, one.since = made, time.monotonic()
        self._wake()
        costly = made.looks_costly
        self._send_to(self._slow if costly else self._quick, one, lambda: self._work(one, made, last=costly))

    def _work(self, one: _Open, made: Unfinished, *, last: bool) -> None:
        try:
            done = made.work(last=last)
        except BaseException as error:  # noqa: BLE001 - as above: a library in Rust
            message = f"The grammar of this request can't be compiled: {describe(error)}"
            self._finish(one, RequestError(one.id, "internal_error", message))
            return
        if done:
            self._settle(one, made.prepared)
        else:
            self._send_to(self._slow, one, lambda: self._work(one, made, last=True))

    def _send_to(self, lane: ThreadPoolExecutor, one: _Open, work: Callable[[], None]) -> None:
        with self._lock:
            if self._open.get(one.id) is one:
                one.turn = lane.submit(work)


def _stop(one: _Open) -> None:
    if one.turn:
        one.turn.cancel()
    if one.unfinished:
        one.unfinished.stop()


def _busy(one: _Open, why: str) -> RequestError:
    message = (
        f"The schemas of other requests are still being turned into grammars: {why}. Try again in a few seconds; a "
        "schema that was compiled before needs no turn."
    )
    return RequestError(one.id, "queue_full", message, "response_format")
