"""What a request takes along from a worker that it has lost, and how long it waits for the next one: pure decisions."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from plimsoll.errors import PlimsollError

# A request that ran on two workers which died for lack of memory is not tried a third time.
_MOST_MEMORY_DEATHS = 2
# Nor is one tried again after so many workers in a row that died before they gave it a token.
_MOST_FRUITLESS = 4
# The same with the workers that another program killed. That is hardly the request's fault, but for a system that ends
# what grows too fast and leaves no trace of it.
_MOST_KILLED = 20
# A few kills say nothing of the requests that ran, and to be tried one after another takes long.
_SUSPICIOUS_KILLS = 4


class Loss(NamedTuple):
    """How requests lose their worker: it was stopped by order, or it ``died``, maybe for ``lack_of_memory``.

    ``killed``: another program ended it while memory was not full.
    ``why`` completes "the answer was paused because ". Requests that wait longer than ``patience_s`` end with
    ``error``. With a ``patience_s`` of 0 an answer that has begun ends at once.
    """

    error: PlimsollError
    why: str
    at: float
    patience_s: float
    died: bool = False
    lack_of_memory: bool = False
    killed: bool = False


class Resume(msgspec.Struct, frozen=True):
    """A request that waits for its next worker; times on the monotonic clock.

    ``tokens`` of the answer were sent. It waits since ``since`` and ends with ``error`` at ``until`` if no load has
    begun by then. ``memory_deaths`` counts its workers that died for lack of memory, ``fruitless`` those in a row that
    died before they gave it a token: either kind may be this request's fault. ``killed`` counts those of the same row
    that another program killed.
    """

    tokens: tuple[int, ...]
    since: float
    until: float
    why: str
    error: PlimsollError
    memory_deaths: int = 0
    fruitless: int = 0
    killed: int = 0

    @property
    def is_suspect(self) -> bool:
        """Whether it runs alone on its next worker, so that it takes no other request along if that dies, too."""
        return self.fruitless > 0 or self.killed >= _SUSPICIOUS_KILLS


def after_loss(before: Resume | None, new_tokens: Sequence[int], loss: Loss) -> Resume | None:
    """What a running request takes along; None where it ends with the loss's error.

    ``before`` is what it took along from its last worker, ``new_tokens`` those of this one.
    """
    memory_deaths = (before.memory_deaths if before else 0) + (loss.died and loss.lack_of_memory)
    fruitless, killed = (0, 0) if new_tokens or not before else (before.fruitless, before.killed)
    if loss.died and not loss.lack_of_memory and not new_tokens:
        fruitless, killed = fruitless + (not loss.killed), killed + loss.killed
    tokens = (*(before.tokens if before else ()), *new_tokens)
    # A worker that was loaded for it and died ends one wait and begins another; the counts bound them.
    since = before.since if before and not new_tokens and not loss.died else loss.at
    until = since + loss.patience_s
    if loss.patience_s == 0:
        # Only what has no token yet is tried again, and once.
        if tokens or before or not loss.died:
            return None
        until = math.inf
    is_hopeless = fruitless >= _MOST_FRUITLESS or fruitless + killed >= _MOST_KILLED
    if memory_deaths >= _MOST_MEMORY_DEATHS or is_hopeless or loss.at >= until:
        return None
    return Resume(tokens, since, until, loss.why, loss.error, memory_deaths, fruitless, killed)


def too_late(error: PlimsollError, waited_s: float) -> PlimsollError:
    """``error`` as it ends a request that has waited for so long."""
    text = f"{error.message} (no worker could be loaded for this request for {waited_s:.0f} s; see memory.patience)"
    after = error.retry_after_s
    return type(error)(text, param=error.param, retry_after_s=after, details=error.details)
