"""Why a worker ended, in words and as an error; and how often it did lately."""

import signal
from collections import deque

from plimsoll.actors.hang_watch import Hung
from plimsoll.actors.messages import State, WorkerExited
from plimsoll.engine.protocol import EngineError, LoadError
from plimsoll.errors import InsufficientMemory, LoadFailed, NeverFits, PlimsollError, WorkerDied
from plimsoll.journal import events

LOAD_COOL_DOWN_S = 5.0
_MEMORY_RETRY_S = 5.0
# MLX on a CPU does not raise when an allocation fails: it dies of one of these.
_MEMORY_SIGNALS = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS})


def explain(
    name: str, *, loading: bool, exit_: WorkerExited, last_words: LoadError | EngineError | Hung | None
) -> PlimsollError:
    """The error for requests of a worker that ended by itself."""
    doing = "while loading" if loading else "while it ran"
    if isinstance(last_words, Hung):
        text = f"{name} hung {doing}: its worker said nothing for {last_words.silent_s:.0f} s and was ended; ask again"
        return WorkerDied(text, retry_after_s=1.0)
    if last_words is not None:
        return _by_its_words(name, doing, last_words)
    how = describe(exit_.code)
    if exit_.oom_killed:
        text = f"the worker of {name} was killed {doing} by the system because memory had run out ({how})"
        return InsufficientMemory(text, retry_after_s=_MEMORY_RETRY_S)
    if -exit_.code in _MEMORY_SIGNALS:
        text = f"the worker of {name} died {doing} by {how}, most likely for lack of memory"
        return InsufficientMemory(text, retry_after_s=_MEMORY_RETRY_S)
    text = f"the worker of {name} ended {doing} by {how}; the next request loads it again"
    return WorkerDied(text, retry_after_s=1.0)


def _by_its_words(name: str, doing: str, words: LoadError | EngineError) -> PlimsollError:
    if words.kind == "host_never":
        return NeverFits(f"{name} can't be loaded: {words.message}")
    if words.kind == "host_full":
        return InsufficientMemory(f"{name} is not loaded: {words.message}", retry_after_s=_MEMORY_RETRY_S)
    if words.kind == "host":
        return InsufficientMemory(f"{name} was stopped: {words.message}", retry_after_s=_MEMORY_RETRY_S)
    if words.kind == "memory":
        return InsufficientMemory(f"{name} ran out of memory {doing}: {words.message}", retry_after_s=_MEMORY_RETRY_S)
    if isinstance(words, LoadError):
        return LoadFailed(f"{name} can't be loaded: {words.message}", retry_after_s=LOAD_COOL_DOWN_S)
    return WorkerDied(f"the engine of {name} failed {doing}: {words.message}", retry_after_s=1.0)


def describe(code: int) -> str:
    """``Popen.returncode`` in words."""
    return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"


def death(name: str, error: PlimsollError, code: int, *, loading: bool) -> events.LoadFailed | events.WorkerDied:
    """What the journal says of a death that was not for lack of memory."""
    if isinstance(error, LoadFailed):
        return events.LoadFailed(name, error.message)
    return events.WorkerDied(name, describe(code), "loading" if loading else "generating")


class Failures:
    """What went wrong with one model lately, and what follows from it: a pure decision over its deaths.

    ``last`` is the latest reason, until a load is asked for again; ``refused_until`` is when its cool-down ends.
    """

    _WITHIN_S = 60.0
    _MAX_DEATHS = 3
    _FIRST_BACKOFF_S = 0.25
    _LATELY_S = 300.0
    _AGAIN_MOST_S = 60.0

    def __init__(self) -> None:
        self._deaths: deque[float] = deque()
        self._gave_up_at = float("-inf")
        self._again_s = LOAD_COOL_DOWN_S
        self.last: PlimsollError | None = None
        self.refused_until = 0.0

    def died(
        self, error: PlimsollError, *, loading: bool, wanted: bool, now: float, hung_s: float = 0.0
    ) -> tuple[State, float]:
        """The state after a death at ``now``, and seconds until the next try; ``hung_s`` is how long it took to die.

        FAILED after a load that can't succeed and after the third death in a minute; BACKOFF, doubled with each death,
        if somebody waits for the model; else COLD until somebody does.
        """
        self._deaths.append(now)
        # The minute is one of work: three hangs are three deaths, however long each was waited for.
        while self._deaths[0] < now - self._WITHIN_S - self._MAX_DEATHS * hung_s:
            self._deaths.popleft()
        hopeless = isinstance(error, LoadFailed) or (isinstance(error, InsufficientMemory) and loading)
        if hopeless or len(self._deaths) >= self._MAX_DEATHS:
            return self.give_up(error, now)
        self.last = error
        if wanted:
            return State.BACKOFF, self._FIRST_BACKOFF_S * 2.0 ** (len(self._deaths) - 1)
        return State.COLD, 0.0

    def give_up(self, error: PlimsollError, now: float) -> tuple[State, float]:
        """FAILED, with a cool-down in which whoever asks gets ``error``.

        A pinned model, whose host may be away for hours, is tried again later each time, up to once a minute.
        """
        self.last = error
        self.refused_until = now + LOAD_COOL_DOWN_S
        lately = now < self._gave_up_at + self._LATELY_S
        self._again_s = min(2 * self._again_s, self._AGAIN_MOST_S) if lately else LOAD_COOL_DOWN_S
        self._gave_up_at = now
        return State.FAILED, self._again_s

    def refusal(self, now: float) -> PlimsollError | None:
        """The error for a request during the cool-down."""
        if self.last is None or now >= self.refused_until:
            return None
        self.last.retry_after_s = max(1.0, self.refused_until - now)
        return self.last
