"""When a model has been idle for too long: its keep-alive time, its pin, and the one timer that looks."""

from plimsoll.actors.messages import Message, Ref, Rules
from plimsoll.actors.timers import Timer, Timers

# When a busy model is looked at again whose idle TTL has passed meanwhile.
_BUSY_RECHECK_S = 1.0
# What rounding may leave of a TTL that has passed.
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
        """What it may be idle, None for ever."""
        return None if self.pinned else self._keep_s

    def used(self) -> None:
        """It is used now."""
        self.last_used = self._timers.now()

    def keep(self, seconds: float | None) -> None:
        """Keep it that long after its last use from now on."""
        self._keep_s = seconds

    def follow(self, rules: Rules) -> None:
        """What the file says newly goes before what was set while it ran; where it says the same, that stays."""
        before, self._rules = self._rules, rules
        if rules.pin != before.pin:
            self.pinned = rules.pin
        if rules.idle_ttl_s != before.idle_ttl_s:
            self._keep_s = rules.idle_ttl_s

    def watch(self) -> None:
        """Look when the time may be over, by what holds now."""
        ttl_s = self.ttl_s
        self._look_in(None if ttl_s is None else max(0.0, self.last_used + ttl_s - self._timers.now()))

    def is_over(self, *, busy: bool) -> bool:
        """The answer to an ``IdleCheck``; where it is no, there will be another."""
        ttl_s = self.ttl_s
        if ttl_s is None:
            return False
        left_s = ttl_s - (self._timers.now() - self.last_used)
        if left_s < _NO_TIME_S and not busy:
            return True
        # One timer for a whole life: it is set again for what is left, not at every request.
        self._look_in(left_s if left_s >= _NO_TIME_S else max(ttl_s, _BUSY_RECHECK_S))
        return False

    def _look_in(self, delay_s: float | None) -> None:
        if self._timer:
            self._timer.cancel()
        if delay_s is not None:
            self._timer = self._timers.tell_later(delay_s, self._owner, IdleCheck())
