"""Requests without a worker: since when each waits, when it has waited too long, and what it is told."""

import math

from plimsoll.actors.expected_wait import expected_wait_s
from plimsoll.actors.messages import LoadWaits, Message, Ref
from plimsoll.actors.model_requests import Requests
from plimsoll.actors.resume import Loss
from plimsoll.actors.timers import Timer
from plimsoll.actors.worker_life import Effects
from plimsoll.errors import InsufficientMemory, PlimsollError, Unavailable, WorkerDied
from plimsoll.journal import events


class PatienceOver(Message, frozen=True):
    """Timer: a waiting request may have waited for as long as it may."""


class Waits:
    """Owned by one ModelActor, whose mailbox gets ``PatienceOver`` when the first request has waited too long."""

    def __init__(self, name: str, owner: Ref, requests: Requests, effects: Effects) -> None:
        self._name = name
        self._owner = owner
        self._requests = requests
        self._timers = effects.timers
        self._journal = effects.journal
        self._gauge = effects.gauge
        self._patience_s = 0.0
        self._count = False
        self._why_not: PlimsollError | None = None
        self._timer: Timer | None = None
        self._at = math.inf

    def follow(self, patience_s: float, *, waits: bool) -> None:
        """``waits``: nothing is done for the waiting requests. To be called after each message."""
        self._patience_s, self._count = patience_s, waits
        if not waits or not self._requests.waiting:
            return
        line = self._requests.line
        line.wait_for_load(self._timers.now())
        until = line.first_end(patience_s)
        if until < self._at:
            self._stop()
            self._at = until
            self._timer = self._timers.tell_later(max(0.0, until - self._timers.now()), self._owner, PatienceOver())

    def load_begins(self) -> None:
        """However long that takes, nobody's wait ends meanwhile."""
        self._why_not = None
        self._requests.line.load_begins()
        self._stop()

    def on_load_waits(self, message: LoadWaits) -> None:
        self._why_not = message.error

    def on_patience_over(self, _: PatienceOver) -> None:
        self._stop()
        if self._count:
            text = f"{self._name} could not be loaded in time; try again shortly"
            wait_s = expected_wait_s(self._requests.pace, 0, loaded=False)
            otherwise = Unavailable(text, retry_after_s=wait_s)
            self._requests.line.end_overdue(self._timers.now(), self._patience_s, self._why_not, otherwise)

    def pause(self, error: PlimsollError, *, died: bool = False, killed: bool = False, by_order: bool = False) -> None:
        """The worker is gone or goes: running requests wait for the next one, as far as they may.

        ``died``: the requests themselves may be the reason, though hardly if another program ``killed`` the worker.
        ``by_order`` what waits is paused, too.
        """
        lack = isinstance(error, InsufficientMemory)
        loss = Loss(
            error, _why(error), self._timers.now(), self._patience_s, died=died, lack_of_memory=lack, killed=killed
        )
        count = self._requests.lose_worker(loss)
        if by_order:
            count += self._requests.line.pause(loss, self._gauge.critical_since)
        if count and loss.patience_s:
            self._journal.record(events.AnswersPaused(self._name, count, loss.why))

    def resumed(self) -> None:
        """The next worker has begun with what waited."""
        if resumed := self._requests.resumed():
            oldest = min(resumed, key=lambda one: one.since)
            paused_s = self._timers.now() - oldest.since
            self._journal.record(events.AnswersResumed(self._name, len(resumed), paused_s, oldest.why))

    def _stop(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer, self._at = None, math.inf


def _why(error: PlimsollError) -> str:
    """Completes "answers were paused because ", in a few words."""
    if isinstance(error, InsufficientMemory):
        return "memory was short"
    return "their worker died" if isinstance(error, WorkerDied) else "their model was stopped"
