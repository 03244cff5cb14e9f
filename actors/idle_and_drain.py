"""When a ModelActor unloads its model: because it was idle for too long, or because it was told to."""

from typing import NamedTuple

from plimsoll.actors.messages import Message, Ref, Rules
from plimsoll.actors.timers import Timer, Timers
from plimsoll.errors import ModelUnloaded, PlimsollError

# If the idle TTL has passed while the model is busy, check again after this time.
_BUSY_RECHECK_S = 1.0
# Rounding may leave so much of a TTL that has passed.
_NO_TIME_S = 1e-3


class IdleCheck(Message, frozen=True):
    """Timer: the idle TTL may have passed."""


class Idleness:
    """Owned by one ModelActor, whose mailbox gets the ``IdleCheck``. ``last_used`` on the monotonic clock."""

    def __init__(self, owner: Ref, timers: Timers, rules: Rules) -> None:
        self._owner = owner
        self._timers = timers
        self._rules = rules
        self._keep_s = rules.idle_ttl_s
        self._timer: Timer | None = None
        self.pinned = rules.pin
        self.last_used = timers.now()

    @property
    def ttl_s(self) -> float | None:
        """Seconds the model may be idle; None: for ever."""
        return None if self.pinned else self._keep_s

    def used(self) -> None:
        """The model is used now."""
        self.last_used = self._timers.now()

    def keep(self, seconds: float | None) -> None:
        """From now on keep the model for so long after its last use; None: for ever."""
        self._keep_s = seconds

    def follow(self, rules: Rules) -> None:
        """A value changed in the file overrides a value set at run time; an unchanged value does not."""
        before, self._rules = self._rules, rules
        if rules.pin != before.pin:
            self.pinned = rules.pin
        if rules.idle_ttl_s != before.idle_ttl_s:
            self._keep_s = rules.idle_ttl_s

    def watch(self) -> None:
        """Set the timer anew, by the TTL that holds now."""
        ttl_s = self.ttl_s
        self._look_in(None if ttl_s is None else max(0.0, self.last_used + ttl_s - self._timers.now()))

    def is_over(self, *, busy: bool) -> bool:
        """Whether the TTL is over, upon an ``IdleCheck``; if it is not, the timer is set again."""
        ttl_s = self.ttl_s
        if ttl_s is None:
            return False
        left_s = ttl_s - (self._timers.now() - self.last_used)
        if left_s < _NO_TIME_S and not busy:
            return True
        # The timer is set again for the time that is left, not at every request.
        self._look_in(left_s if left_s >= _NO_TIME_S else max(ttl_s, _BUSY_RECHECK_S))
        return False

    def _look_in(self, delay_s: float | None) -> None:
        if self._timer:
            self._timer.cancel()
        if delay_s is not None:
            self._timer = self._timers.tell_later(delay_s, self._owner, IdleCheck())


EMERGENCY = "emergency"


class DrainDeadline(Message, frozen=True):
    """Timer: running answers have had their grace. Outdated if ``at`` is not the deadline any more."""

    at: float


class _Order(NamedTuple):
    reason: str
    error: PlimsollError
    until: float
    pauses: bool = False


class UnloadOrders:
    """Owned by one ModelActor, whose mailbox gets the ``DrainDeadline``.

    At most two orders are kept: a firm one, and one that holds only while memory is critical. Of two orders of the same
    kind the earlier deadline counts, and so it does between the two.
    """

    def __init__(self, name: str, owner: Ref, timers: Timers) -> None:
        self._owner = owner
        self._timers = timers
        self._firm: _Order | None = None
        self._until_eased: _Order | None = None
        self._stays = _Order("", ModelUnloaded(f"{name} was unloaded; ask again to load it"), 0.0)

    @property
    def _order(self) -> _Order:
        if self.is_urgent and self._firm:
            return self._firm
        orders = [one for one in (self._firm, self._until_eased) if one]
        return min(orders, key=lambda one: one.until, default=self._stays)

    @property
    def reason(self) -> str:
        return self._order.reason

    @property
    def error(self) -> PlimsollError:
        """The error for requests that are still running at the deadline."""
        return self._order.error

    @property
    def pauses(self) -> bool:
        """Whether the model's next life carries on what is still running at the deadline."""
        return self._order.pauses

    @property
    def is_urgent(self) -> bool:
        return self._firm is not None and self._firm.reason == EMERGENCY

    @property
    def until_eased(self) -> bool:
        """Whether an order holds that memory easing calls off."""
        return self._until_eased is not None

    @property
    def is_firm(self) -> bool:
        """Whether an order holds that memory easing does not call off."""
        return self._firm is not None

    def accept(
        self, reason: str, error: PlimsollError, grace_s: float, *, until_eased: bool = False, pauses: bool = False
    ) -> bool:
        """Take an order to unload; False if an order with the same or an earlier deadline is there.

        At the deadline the owner gets ``DrainDeadline``.
        """
        order = _Order(reason, error, self._timers.now() + grace_s, pauses)
        # A later order may shorten the time, never extend it.
        before = [one for one in (self._firm, self._until_eased if until_eased else None) if one]
        if reason != EMERGENCY and any(one.until <= order.until for one in before):
            return False
        if until_eased:
            self._until_eased = order
        else:
            self._firm = order
        if grace_s > 0:
            self._timers.tell_later(grace_s, self._owner, DrainDeadline(order.until))
        return True

    def call_off(self) -> bool:
        """Memory is not critical any more. True if no firm order is left."""
        self._until_eased = None
        return self._firm is None

    def is_over(self, message: DrainDeadline) -> bool:
        """Whether this is the deadline that holds now, not one from before it was changed."""
        return message.at == self._order.until
