"""Who watches the Watchdog: the Supervisor, by the age of what it last heard from it."""

from collections.abc import Callable

from plimsoll.actors.hangs import Rounds
from plimsoll.actors.messages import Marks, Message, Ref, tell
from plimsoll.actors.timers import Timers
from plimsoll.journal import events
from plimsoll.journal.journal import Journal
from plimsoll.memory.sample import Level

# A sample, or the word that there is none, comes every second at the latest.
SILENT_S = 5.0
LOOK_S = 1.0
# A thread that is stuck in a system call can't be ended, so a new one is not begun every few seconds for ever.
_LONGEST_PAUSE_S = 60.0


class LookAfterWatchdog(Message, frozen=True):
    """Timer: see whether the Watchdog still speaks."""


class Keeper:
    """Owned by the Supervisor. ``silent_s`` is for how long nothing was heard, as far as anybody was awake to hear."""

    def __init__(self, start: Callable[[Marks, Level], Ref], marks: Marks, timers: Timers, journal: Journal) -> None:
        """``start`` begins a Watchdog with such marks that takes memory to be at that level."""
        self._start = start
        self._marks = marks
        self._timers = timers
        self._journal = journal
        self._rounds = Rounds(LOOK_S, timers.now())
        self._pause_s = 0.0
        self._since_start_s = 0.0
        self.silent_s = 0.0
        self.watchdog = start(marks, Level.NORMAL)

    def look_later(self, owner: Ref) -> None:
        """Tell ``owner`` when it is time to look again."""
        self._timers.tell_later(LOOK_S, owner, LookAfterWatchdog())

    def mark(self, marks: Marks) -> None:
        """Hold memory against other marks from now on."""
        self._marks = marks
        tell(self.watchdog, marks)

    def heard(self) -> None:
        """It spoke, be it only to say that memory can't be read."""
        self.silent_s = 0.0

    def look(self, level: Level) -> bool:
        """Whether it had to be started again, which goes on from ``level``; it knows nobody yet."""
        passed_s = self._rounds.passed_s(self._timers.now())
        self.silent_s += passed_s
        self._since_start_s += passed_s
        if self._since_start_s > 2 * _LONGEST_PAUSE_S:
            self._pause_s = 0.0
        is_dead = not self.watchdog.is_alive()
        if not (is_dead or self.silent_s >= SILENT_S) or self._since_start_s < self._pause_s:
            return False
        self._journal.record(events.WatchdogRestarted(is_dead, self.silent_s))
        # Its thread ends by this as soon as it gets out of whatever holds it.
        self.watchdog.stop(block=False)
        self._pause_s = min(max(SILENT_S, 2 * self._pause_s), _LONGEST_PAUSE_S)
        self._since_start_s = 0.0
        self.watchdog = self._start(self._marks, level)
        return True
