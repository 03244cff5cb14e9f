"""Watches one model's worker while it has work; what counts as hung is decided in ``hangs``."""

from collections.abc import Callable
from typing import NamedTuple

from plimsoll.actors.hangs import Patience
from plimsoll.actors.messages import Message, Ref
from plimsoll.actors.timers import Timers
from plimsoll.memory.sources import Activity


class HangCheck(Message, frozen=True):
    """Timer: look whether the worker has said anything."""


class Hung(NamedTuple):
    """A worker that has work said nothing for ``silent_s`` seconds."""

    silent_s: float


class HangWatch:
    """Owned by one ModelActor, whose mailbox gets the ``HangCheck``; with no limit it watches nothing."""

    def __init__(
        self, owner: Ref, timers: Timers, activity: Callable[[int], Activity | None], limit_s: float | None
    ) -> None:
        self._owner = owner
        self._timers = timers
        self._activity = activity
        self._limit_s = limit_s
        self._patience: Patience | None = None
        self._armed = self._told = False

    def follow(self, *, working: bool) -> None:
        """Whether there is a worker that owes an answer; called after everything that may have changed it."""
        if not working:
            self._patience, self._told = None, False
        elif self._patience is None and self._limit_s is not None and not self._told:
            self._patience = Patience(self._limit_s, self._timers.now())
            self._arm(self._patience)

    def heard(self) -> None:
        """The worker said something."""
        if self._patience:
            self._patience.heard()

    def look(self, pid: int | None) -> Hung | None:
        """The answer to a ``HangCheck``."""
        self._armed = False
        patience = self._patience
        if patience is None or pid is None:
            return None
        silent_s = patience.look(self._activity(pid), self._timers.now())
        if silent_s is None:
            self._arm(patience)
            return None
        # It is killed now, and how long that takes is not watched here.
        self._patience, self._told = None, True
        return Hung(silent_s)

    def _arm(self, patience: Patience) -> None:
        if not self._armed:
            self._armed = True
            self._timers.tell_later(patience.every_s, self._owner, HangCheck())
