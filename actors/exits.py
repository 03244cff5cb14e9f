"""Why a worker ended, in words and as an error; and how often it did lately."""

import signal
from collections import deque

from plimsoll.actors.messages import WorkerExited
from plimsoll.engine.protocol import EngineError, LoadError
from plimsoll.errors import InsufficientMemory, LoadFailed, PlimsollError, WorkerDied

LOAD_COOL_DOWN_S = 5.0
_MEMORY_RETRY_S = 5.0
# MLX on a CPU does not raise when an allocation fails: it dies of one of these.
_MEMORY_SIGNALS = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS})


def explain(
    name: str, *, loading: bool, exit_: WorkerExited, last_words: LoadError | EngineError | None
) -> PlimsollError:
    """The error for requests of a worker that ended by itself."""
    doing = "while loading" if loading else "while it ran"
    if last_words is not None:
        if last_words.kind == "memory":
            text = f"{name} ran out of memory {doing}: {last_words.message}"
            return InsufficientMemory(text, retry_after_s=_MEMORY_RETRY_S)
        if isinstance(last_words, LoadError):
            return LoadFailed(f"{name} can't be loaded: {last_words.message}", retry_after_s=LOAD_COOL_DOWN_S)
        return WorkerDied(f"the engine of {name} failed {doing}: {last_words.message}", retry_after_s=1.0)
    how = describe(exit_.code)
    if exit_.oom_killed:
        text = f"the worker of {name} was killed {doing} by the system because memory had run out ({how})"
        return InsufficientMemory(text, retry_after_s=_MEMORY_RETRY_S)
    if -exit_.code in _MEMORY_SIGNALS:
        text = f"the worker of {name} died {doing} by {how}, most likely for lack of memory"
        return InsufficientMemory(text, retry_after_s=_MEMORY_RETRY_S)
    text = f"the worker of {name} ended {doing} by {how}; the next request loads it again"
    return WorkerDied(text, retry_after_s=1.0)


def describe(code: int) -> str:
    """``Popen.returncode`` in words."""
    return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"


class DeathLog:
    """Deaths of one model's workers within the last minute: the first ones are retried, the third is not."""

    WITHIN_S = 60.0
    MAX = 3
    FIRST_BACKOFF_S = 0.25

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def record(self, now: float) -> None:
        """One more death at ``now`` (monotonic seconds)."""
        self._times.append(now)
        while self._times[0] < now - self.WITHIN_S:
            self._times.popleft()

    @property
    def too_many(self) -> bool:
        return len(self._times) >= self.MAX

    @property
    def backoff_s(self) -> float:
        """How long to wait before the next try: doubled with each death."""
        return self.FIRST_BACKOFF_S * 2.0 ** (len(self._times) - 1)
