"""Refused loads in the log: the first one at once, repeated ones as one line with their count."""

from collections.abc import Callable

import msgspec

from plimsoll.journal import events
from plimsoll.journal.journal import Journal

EVERY_S = 10.0


class _Spell:
    """Refusals of one model for one reason since the last log line."""

    def __init__(self, now: float) -> None:
        self.told_at = now
        self.count = 0
        self.reason = ""


class RefusalLog:
    """Owned by ``Admission``. Each refusal is recorded as an event; only the log lines are joined."""

    def __init__(self, journal: Journal, clock: Callable[[], float]) -> None:
        self._journal = journal
        self._clock = clock
        self._spells: dict[tuple[str, str], _Spell] = {}

    def note(self, refusal: events.LoadRefused, why: str) -> None:
        """``why`` names the reason without figures, so that equal reasons compare equal."""
        key = (refusal.model, why)
        spell = self._spells.get(key)
        if spell is None:
            self._spells[key] = _Spell(self._clock())
            self._journal.record(refusal)
            return
        spell.count += 1
        spell.reason = refusal.reason
        self._journal.record(msgspec.structs.replace(refusal, repeated=True))

    def tell(self) -> None:
        """Log the number of repeated refusals every 10 s; forget a reason that did not come up in that time."""
        now = self._clock()
        for (model, why), spell in list(self._spells.items()):
            passed_s = now - spell.told_at
            if passed_s < EVERY_S:
                continue
            if spell.count:
                self._journal.record(events.LoadsRefused(model, spell.count, passed_s, spell.reason))
                self._spells[model, why] = _Spell(now)
            else:
                del self._spells[model, why]
