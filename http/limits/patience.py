"""How long a connection may take: decided from what is seen of it now and then, at no cost between."""

import enum

import msgspec

from plimsoll.config import LimitsConfig

# A client that takes this much in ``limits.slow_client`` is slow but alive.
_PROGRESS_BYTES = 32 * 1024
# What may wait for a client that has read nothing since the last look: minutes of an answer.
_MOST_WAITING = 4096


class Phase(enum.Enum):
    """What a connection is waiting for."""

    FRESH = "its first request"
    IDLE = "another request"
    HEADERS = "the rest of the headers"
    BODY = "the rest of the body"
    DRAIN = "the rest of a body that was refused"
    ANSWER = "its answer"


_LIMITS = {
    Phase.FRESH: "header_time",
    Phase.IDLE: "idle",
    Phase.HEADERS: "header_time",
    Phase.BODY: "body_time",
    Phase.DRAIN: "body_time",
}


class Look(msgspec.Struct, frozen=True):
    """A connection at one moment.

    ``served`` requests were begun before; writing was paused ``pauses`` times and is if ``paused``; ``buffered`` bytes
    are written and not taken by the system; ``waiting`` items of the answer are not written yet.
    """

    phase: Phase
    served: int = 0
    pauses: int = 0
    paused: bool = False
    buffered: int = 0
    waiting: int = 0


class Watch(msgspec.Struct, frozen=True):
    """Since when the connection waits for the same, and since when its client has taken nothing."""

    look: Look
    since_s: float
    taken_s: float


def watch(before: Watch | None, look: Look, now_s: float) -> Watch:
    """The watch after another look."""
    if before is None:
        return Watch(look, now_s, now_s)
    last = before.look
    same = (look.phase, look.served) == (last.phase, last.served)
    stuck = look.paused and look.pauses == last.pauses and last.buffered - look.buffered < _PROGRESS_BYTES
    # Little by little is progress, too: the mark stays until enough has gone.
    kept = msgspec.structs.replace(look, buffered=last.buffered) if stuck else look
    return Watch(kept, before.since_s if same else now_s, before.taken_s if stuck else now_s)


def overdue(watched: Watch, limits: LimitsConfig, now_s: float) -> str | None:
    """Why the connection has to end, None if it may go on."""
    if is_stuck(watched, limits, now_s):
        return f"its client did not read its answer ({watched.look.waiting} parts wait; limits.slow_client)"
    key = _LIMITS.get(watched.look.phase)
    if key is None or now_s - watched.since_s <= getattr(limits, key):
        return None
    return f"{watched.look.phase.value} did not arrive within {getattr(limits, key):g} s (limits.{key})"


def is_stuck(watched: Watch, limits: LimitsConfig, now_s: float) -> bool:
    """Whether the client has stopped reading: for too long, or with too much waiting for it."""
    unread_s = now_s - watched.taken_s
    return unread_s > limits.slow_client or (unread_s > 0 and watched.look.waiting > _MOST_WAITING)
