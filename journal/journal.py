"""The Journal: takes each event once and brings it to the log, the black box and the subscribers."""

import logging
from collections.abc import Callable

from plimsoll.journal.blackbox import BlackBox
from plimsoll.journal.events import Event
from plimsoll.journal.lines import Language, line
from plimsoll.memory.sample import Level, Sample

log = logging.getLogger("plimsoll.memory")

Subscriber = Callable[[Event], None]
"""Called in the thread that records, so it has to return at once."""


class Journal:
    """May be used from any thread; never raises, and waits for nothing but the log's own handlers."""

    def __init__(self, language: Language = "en", blackbox: BlackBox | None = None) -> None:
        self._language = language
        self._blackbox = blackbox
        self._subscribers: list[Subscriber] = []

    def record(self, event: Event) -> None:
        """One log line at the event's severity, one row, one call of every subscriber."""
        try:
            log.log(event.severity, "%s", line(event, self._language))
        except Exception:
            # The row and the subscribers matter more than the line.
            log.exception("an event of memory has no line: %r", event)
        if self._blackbox:
            self._blackbox.event(event)
        for subscriber in tuple(self._subscribers):
            self._tell(subscriber, event)

    def sample(self, sample: Sample, level: Level) -> None:
        """For the black box only; it keeps one per second."""
        if self._blackbox:
            self._blackbox.sample(sample, level)

    def peak(self, key: str, footprint_bytes: int) -> None:
        """A measured footprint, for the black box."""
        if self._blackbox:
            self._blackbox.peak(key, footprint_bytes)

    @property
    def problem(self) -> str:
        """A sentence while the black box can't be written, else ""."""
        return self._blackbox.problem if self._blackbox else ""

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call ``subscriber`` with every event from now on, until the function that comes back is called.

        One that raises is dropped.
        """
        self._subscribers.append(subscriber)
        return lambda: self._drop(subscriber)

    def _drop(self, subscriber: Subscriber) -> None:
        if subscriber in self._subscribers:
            self._subscribers.remove(subscriber)

    def _tell(self, subscriber: Subscriber, event: Event) -> None:
        try:
            subscriber(event)
        except Exception:
            log.exception("a subscriber to the events of memory failed and is dropped")
            self._drop(subscriber)
