"""The Journal: takes each event once and brings it to the log, the black box and the subscribers."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from plimsoll.journal.blackbox import BlackBox
from plimsoll.journal.events import Entry, Event
from plimsoll.journal.lines import Language, line
from plimsoll.memory.sample import Level, Sample

log = logging.getLogger("plimsoll.memory")

Subscriber = Callable[[Entry], None]
"""Called in the thread that records, so it has to return at once."""

_RECENT = 1000


class Journal:
    """May be used from any thread; never raises, and waits for nothing but the log's handlers and the subscribers."""

    def __init__(
        self, language: Language = "en", blackbox: BlackBox | None = None, *, now: Callable[[], float] = time.time
    ) -> None:
        """``now`` gives seconds since the epoch."""
        self.language: Language = language
        self.blackbox = blackbox
        self.now = now
        self._last = 0
        self._recent: deque[Entry] = deque(maxlen=_RECENT)
        self._subscribers: list[Subscriber] = []
        # Any thread records, and all have to see one order. Reentrant: a subscriber may record.
        self._order = threading.RLock()

    def record(self, event: Event) -> None:
        """One log line at the event's severity, one row, one call of every subscriber."""
        try:
            log.log(event.severity, "%s", line(event, self.language))
        except Exception:
            # The row and the subscribers matter more than the line.
            log.exception("an event of memory has no line: %r", event)
        with self._order:
            entry = self._entry(event)
            self._recent.append(entry)
            if self.blackbox:
                self.blackbox.event(event, at=entry.at, number=entry.id)
            for subscriber in tuple(self._subscribers):
                self._tell(subscriber, entry)

    def sample(self, sample: Sample, level: Level) -> None:
        """For the black box only; it keeps one per second."""
        if self.blackbox:
            self.blackbox.sample(sample, level)

    def peak(self, key: str, footprint_bytes: int) -> None:
        """A measured footprint, for the black box."""
        if self.blackbox:
            self.blackbox.peak(key, footprint_bytes)

    def tokens(self, model: str, key: str, figures: tuple[int, int, int]) -> None:
        """The tokens of one request (prompt, reused of it, answer), for the black box."""
        if self.blackbox:
            self.blackbox.tokens(model, key, figures)

    @property
    def problem(self) -> str:
        """A sentence while the black box can't be written, else ""."""
        return self.blackbox.problem if self.blackbox else ""

    @property
    def last_id(self) -> int:
        """The id of the latest event of this run, 0 before the first."""
        return self._last

    def recent(self) -> list[Entry]:
        """The latest events of this run, at most 1000, oldest first."""
        with self._order:
            return list(self._recent)

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call ``subscriber`` with every event from now on, until the function that comes back is called.

        One that raises is dropped.
        """
        self._subscribers.append(subscriber)
        return lambda: self._drop(subscriber)

    def _entry(self, event: Event) -> Entry:
        at = self.now()
        # Microseconds: ids go on rising over restarts without a look at the file, and stay exact in JavaScript.
        self._last = max(self._last + 1, int(at * 1e6))
        return Entry(self._last, at, event)

    def _drop(self, subscriber: Subscriber) -> None:
        if subscriber in self._subscribers:
            self._subscribers.remove(subscriber)

    def _tell(self, subscriber: Subscriber, entry: Entry) -> None:
        try:
            subscriber(entry)
        except Exception:
            log.exception("a subscriber to the events of memory failed and is dropped")
            self._drop(subscriber)
