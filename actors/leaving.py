"""How one model leaves: why, what its requests end with, and until when running answers may go on."""

from plimsoll.actors.messages import Message, Ref
from plimsoll.actors.timers import Timers
from plimsoll.errors import ModelUnloaded, PlimsollError

EMERGENCY = "emergency"


class DrainDeadline(Message, frozen=True):
    """Timer: running answers have had their grace. Outdated if ``at`` is not the deadline any more."""

    at: float


class Leaving:
    """Owned by one ModelActor, whose mailbox gets the ``DrainDeadline``."""

    def __init__(self, name: str, owner: Ref, timers: Timers) -> None:
        self._owner = owner
        self._timers = timers
        self._until: float | None = None
        self.reason = ""
        self.error: PlimsollError = ModelUnloaded(f"{name} was unloaded; ask again to load it")

    @property
    def is_urgent(self) -> bool:
        return self.reason == EMERGENCY

    def accept(self, reason: str, error: PlimsollError, grace_s: float) -> bool:
        """Leave for this reason; False for one that was told before, unless it has less time by this."""
        until = self._timers.now() + grace_s
        # Who was told to leave first may have been given less time, never more.
        if self._until is not None and until >= self._until:
            return False
        self.reason, self.error, self._until = reason, error, until
        return True

    def drain(self, grace_s: float) -> None:
        """Running answers go on until the time is over."""
        assert self._until is not None  # noqa: S101 - nobody drains before he is told to leave
        self._timers.tell_later(grace_s, self._owner, DrainDeadline(self._until))

    def is_over(self, message: DrainDeadline) -> bool:
        """Whether the time is over, or was shortened meanwhile."""
        return message.at == self._until
