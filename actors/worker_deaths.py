"""Why a worker ended, as an error with a reason; and what follows from the deaths of the last minute."""

import signal
from collections import deque
from collections.abc import Sequence

from plimsoll.actors.hang_detection import Hung
from plimsoll.actors.status import State
from plimsoll.engine.protocol import EngineError, LoadError
from plimsoll.errors import InsufficientMemory, LoadFailed, NeverFits, PlimsollError, WorkerDied
from plimsoll.journal import events
from plimsoll.memory.death_evidence import Death, fullest, lacked_memory
from plimsoll.memory.memory_errors import ran_out
from plimsoll.memory.sample import Sample

LOAD_COOL_DOWN_S = 5.0
_MEMORY_RETRY_S = 5.0


def explain(
    name: str,
    *,
    loading: bool,
    death: Death,
    samples: Sequence[Sample],
    last_words: LoadError | EngineError | Hung | None,
) -> PlimsollError:
    """The error for requests of a worker that ended by itself; ``samples`` are those of its last seconds."""
    doing = "while loading" if loading else "while it ran"
    if isinstance(last_words, Hung):
        text = f"{name} hung {doing}: its worker said nothing for {last_words.silent_s:.0f} s and was ended; ask again"
        return WorkerDied(text, retry_after_s=1.0)
    if last_words is not None:
        return _by_its_words(name, doing, last_words, samples)
    how = describe(death.code)
    if death.oom_killed:
        text = f"the worker of {name} was killed {doing} by the system because memory had run out ({how})"
        return ran_out(text, samples)
    if lacked_memory(death, samples):
        percent = fullest(samples).used_percent
        text = f"the worker of {name} died {doing} by {how} with memory {percent:.1f}% full, most likely for lack of it"
        return ran_out(text, samples)
    text = f"the worker of {name} ended {doing} by {how}; the next request loads it again"
    return WorkerDied(text, retry_after_s=1.0)


def _by_its_words(name: str, doing: str, words: LoadError | EngineError, samples: Sequence[Sample]) -> PlimsollError:
    if words.kind == "host_never":
        return NeverFits(f"{name} can't be loaded: {words.message}")
    if words.kind == "host_full":
        return InsufficientMemory(f"{name} is not loaded: {words.message}", retry_after_s=_MEMORY_RETRY_S)
    if words.kind == "host":
        return InsufficientMemory(f"{name} was stopped: {words.message}", retry_after_s=_MEMORY_RETRY_S)
    if words.kind == "memory":
        return ran_out(f"{name} ran out of memory {doing}: {words.message}", samples)
    if isinstance(words, LoadError):
        return LoadFailed(f"{name} can't be loaded: {words.message}", retry_after_s=LOAD_COOL_DOWN_S)
    return WorkerDied(f"the engine of {name} failed {doing}: {words.message}", retry_after_s=1.0)


def is_of_another_host(words: LoadError | EngineError | Hung | None) -> bool:
    """Whether another host of the model's group had no memory for its part."""
    return isinstance(words, LoadError | EngineError) and words.kind in ("host", "host_full", "host_never")


def describe(code: int) -> str:
    """``Popen.returncode`` in words."""
    return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"


def death(name: str, error: PlimsollError, code: int, *, loading: bool) -> events.LoadFailed | events.WorkerDied:
    """The journal event of a death that lack of memory did not cause."""
    if isinstance(error, LoadFailed):
        return events.LoadFailed(name, error.message)
    return events.WorkerDied(name, describe(code), "loading" if loading else "generating")


class Failures:
    """The recent deaths of one model's workers, and the state that follows: a pure decision.

    ``last`` is the latest reason, until a load is asked for again; ``refused_until`` is when its cool-down ends.
    """

    _WITHIN_S = 60.0
    _MAX_DEATHS = 3
    _FIRST_BACKOFF_S = 0.25
    _LONGEST_BACKOFF_S = 4.0
    _LATELY_S = 300.0
    _AGAIN_MOST_S = 60.0

    def __init__(self) -> None:
        self._deaths: deque[float] = deque()
        self._gave_up_at = float("-inf")
        self._again_s = LOAD_COOL_DOWN_S
        self.last: PlimsollError | None = None
        self.refused_until = 0.0

    def died(
        self,
        error: PlimsollError,
        now: float,
        hung_s: float = 0.0,
        *,
        loading: bool,
        wanted: bool,
        served: bool = False,
        hopes: bool = False,
    ) -> tuple[State, float]:
        """The state after a death at ``now``, and seconds until the next try; ``hung_s`` is how long it took to die.

        FAILED after a load that can't succeed and after the third death in a minute; BACKOFF, doubled with each death,
        if a request waits for the model; else COLD until the next request.
        A worker that ``served``, which gave a request a token, does not count: its requests get further with each
        worker. With ``hopes`` requests wait that have lost a worker: they are not given up before their time is over.
        """
        lacks_memory = isinstance(error, InsufficientMemory)
        if served and not lacks_memory:
            self.last = error
            return (State.BACKOFF, self._FIRST_BACKOFF_S) if wanted else (State.COLD, 0.0)
        self._deaths.append(now)
        # The time until a hang is noticed does not count, so three hangs in a row are three deaths in a minute.
        while self._deaths[0] < now - self._WITHIN_S - self._MAX_DEATHS * hung_s:
            self._deaths.popleft()
        hopeless = isinstance(error, LoadFailed) or (lacks_memory and loading and not hopes)
        if hopeless or (len(self._deaths) >= self._MAX_DEATHS and not hopes):
            return self.give_up(error, now)
        self.last = error
        if wanted:
            return State.BACKOFF, min(self._FIRST_BACKOFF_S * 2.0 ** (len(self._deaths) - 1), self._LONGEST_BACKOFF_S)
        return State.COLD, 0.0

    def give_up(self, error: PlimsollError, now: float) -> tuple[State, float]:
        """FAILED, with a cool-down in which requests end with ``error``.

        A pinned model is tried again after growing pauses, of a minute at most: its host may be away for hours.
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
        return self.last.fresh(max(1.0, self.refused_until - now))
