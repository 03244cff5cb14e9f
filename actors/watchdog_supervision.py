"""How the Supervisor notices a Watchdog that has died or sends nothing, and starts another one."""

from collections.abc import Callable

from plimsoll.actors.hang_detection import CheckIntervals
from plimsoll.actors.messages import Marks, Message, Ref, tell
from plimsoll.actors.settings import Settings
from plimsoll.actors.timers import Timers
from plimsoll.journal import events
from plimsoll.journal.journal import Journal
from plimsoll.memory.sample import Level

# The Watchdog sends a sample, or that none could be taken, at least once a second.
SILENT_S = 5.0
LOOK_S = 1.0
# A thread that is stuck in a system call can't be ended, so a new one is not begun every few seconds for ever.
_LONGEST_PAUSE_S = 60.0


class CheckWatchdog(Message, frozen=True):
    """Timer: check whether the Watchdog still sends samples."""


class WatchdogSupervision:
    """Owned by the Supervisor. ``silent_s`` counts the seconds since the last message, by ``CheckIntervals``."""

    def __init__(
        self, start: Callable[[Settings, Level], Ref], settings: Settings, timers: Timers, journal: Journal
    ) -> None:
        """``start`` begins a Watchdog with these settings, which takes memory to be at that level."""
        self._start = start
        self._settings = settings
        self._timers = timers
        self._journal = journal
        self._intervals = CheckIntervals(LOOK_S, timers.now())
        self._pause_s = 0.0
        self._since_start_s = 0.0
        self.silent_s = 0.0
        self.watchdog = start(settings, Level.NORMAL)

    def check_later(self, owner: Ref) -> None:
        """Send ``CheckWatchdog`` to ``owner`` in ``LOOK_S`` seconds."""
        self._timers.tell_later(LOOK_S, owner, CheckWatchdog())

    def follow(self, settings: Settings) -> None:
        """Have memory compared with the thresholds and the limit of these settings from now on."""
        self._settings = settings
        tell(self.watchdog, Marks(settings))

    def heard(self) -> None:
        """The Watchdog sent a message, be it that memory can't be read."""
        self.silent_s = 0.0

    def check(self, level: Level) -> bool:
        """True if the Watchdog was replaced. The new one starts at ``level`` and has no subscribers yet."""
        passed_s = self._intervals.passed_s(self._timers.now())
        self.silent_s += passed_s
        self._since_start_s += passed_s
        if self._since_start_s > 2 * _LONGEST_PAUSE_S:
            self._pause_s = 0.0
        is_dead = not self.watchdog.is_alive()
        if not (is_dead or self.silent_s >= SILENT_S) or self._since_start_s < self._pause_s:
            return False
        self._journal.record(events.WatchdogRestarted(is_dead, self.silent_s))
        # A thread that is stuck in a system call ends as soon as the call returns.
        self.watchdog.stop(block=False)
        self._pause_s = min(max(SILENT_S, 2 * self._pause_s), _LONGEST_PAUSE_S)
        self._since_start_s = 0.0
        self.watchdog = self._start(self._settings, level)
        return True
