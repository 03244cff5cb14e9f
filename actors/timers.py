"""Timers: one thread that sends messages to actors at given times."""

import contextlib
import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import pykka

from plimsoll.actors.messages import Ref

# Condition.wait raises for centuries, which would end the thread and with it every timer.
_LONGEST_WAIT_S = 86400.0

log = logging.getLogger("plimsoll.memory")


class Timer:
    """A message that will be sent later, unless it is cancelled."""

    def __init__(self, ref: Ref, message: Any) -> None:
        self._ref = ref
        self._message = message
        self._cancelled = False

    def cancel(self) -> None:
        """Never deliver. Safe from any thread and after delivery."""
        self._cancelled = True

    def fire(self) -> None:
        """Deliver now, unless cancelled or the actor is gone."""
        if not self._cancelled:
            with contextlib.suppress(pykka.ActorDeadError):
                self._ref.tell(self._message)


class Timers(Protocol):
    """The clock and the timers of the actors; tests use a clock that they move themselves."""

    def now(self) -> float:
        """Seconds on a monotonic clock."""

    def tell_later(self, delay_s: float, ref: Ref, message: Any) -> Timer:
        """Tell ``ref`` the message in ``delay_s`` seconds."""


class ThreadTimers:
    """``Timers`` on the monotonic clock with one daemon thread for all."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="timers", daemon=True)
        self._thread.start()

    def now(self) -> float:
        return self._clock()

    def tell_later(self, delay_s: float, ref: Ref, message: Any) -> Timer:
        timer = Timer(ref, message)
        with self._changed:
            heapq.heappush(self._due, (self._clock() + delay_s, next(self._order), timer))
            self._changed.notify()
        return timer

    def close(self) -> None:
        """End the thread; what is still due is dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                wait_s = self._due[0][0] - self._clock() if self._due else None
                if wait_s is None or wait_s > 0:
                    self._changed.wait(None if wait_s is None else min(wait_s, _LONGEST_WAIT_S))
                    continue
                _, _, timer = heapq.heappop(self._due)
            try:
                timer.fire()
            except Exception:
                # This thread must go on: it serves the timers of all actors.
                log.exception("a timer could not be told")
