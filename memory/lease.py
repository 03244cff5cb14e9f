"""Leases: how much memory a loaded model's KV caches may take from now on. Pure decisions over one sample.

A worker begins with little room and asks for more before it needs it. More room comes from free memory first, then
from room that other workers hold but do not use, then from evicting idle models, as for a load.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec

from plimsoll.memory.ledger import Need, Seat, distance_bytes, in_eviction_order, most_bytes
from plimsoll.memory.levels import Thresholds
from plimsoll.memory.sample import Sample


class LeaseRequest(msgspec.Struct, frozen=True):
    """One model asks for room for its KV caches, which may take ``kv_bytes`` now.

    ``wanted_bytes`` are wanted in all, and with less than ``needed_bytes`` a request has to wait. ``asked`` names the
    models that were already asked to hand back unused room.
    """

    kv_bytes: int
    wanted_bytes: int
    needed_bytes: int
    asked: frozenset[str] = frozenset()


class LeaseMove(msgspec.Struct, frozen=True):
    """What to do about one request for more room.

    ``grant``: the room is ``kv_bytes`` from now on, which may be less than was wanted. ``give_way``: have ``models``
    hand back the room that they do not use. ``evict``: unload the one of ``models``. ``wait``: memory is coming back.
    ``more`` is False if nothing that runs could free memory for a denied request.
    """

    verdict: Literal["grant", "give_way", "evict", "wait"]
    kv_bytes: int
    models: tuple[str, ...] = ()
    more: bool = True


def lease_percent(thresholds: Thresholds) -> float:
    """How full leases may make memory.

    A margin stays below critical, where answers are ended: rows that join, leave or pause are copied layer by layer,
    and other programs take memory too. By default it is 90 %, half of the way from warning to critical.
    """
    return (thresholds.warning + thresholds.critical) / 2


def decide_lease(
    request: LeaseRequest, seat: Seat, others: Sequence[Seat], sample: Sample, line_percent: float
) -> LeaseMove:
    """The move for the model of ``seat``; ``others`` are the other living models, ``line_percent`` as above."""
    kv_bytes, needed_bytes = request.kv_bytes, request.needed_bytes
    room = max(0, distance_bytes([seat, *others], sample, line_percent))
    possible = kv_bytes + min(max(0, request.wanted_bytes - kv_bytes), room)
    if possible >= min(needed_bytes, request.wanted_bytes):
        return LeaseMove("grant", possible)
    givers = tuple(other.name for other in others if may_give(other) and other.name not in request.asked)
    if givers:
        return LeaseMove("give_way", kv_bytes, givers)
    victims = in_eviction_order(others)
    leaving = [other for other in others if other.leaving and other.gain_bytes]
    missing = needed_bytes - possible
    if missing <= sum(other.gain_bytes for other in (*victims, *leaving)):
        return LeaseMove("wait", kv_bytes) if leaving else LeaseMove("evict", kv_bytes, (victims[0].name,))
    busy = any(other.gain_bytes and not (other.loaded and other.idle) for other in others)
    return LeaseMove("grant", kv_bytes, more=busy)


def may_give(seat: Seat) -> bool:
    """Whether its worker may hand something back when it is asked.

    Room that it does not use, or what its allocators' pools hold beyond all that it was granted.
    """
    return (
        seat.loaded and not seat.leaving and (seat.returnable_bytes > 0 or seat.footprint_bytes > seat.reserved_bytes)
    )


def most_kv_bytes(need: Need, sample: Sample, line_percent: float) -> int:
    """The most that the KV caches of a model may ever take on this machine, with nothing else loaded.

    ``need.kv_most_bytes`` is a limit of the configuration, 0 for none.
    """
    if not need.leased:
        return need.kv_bytes
    most = max(0, most_bytes(sample, line_percent) - (need.total_bytes - need.kv_bytes))
    return min(most, need.kv_most_bytes or most)


def bounded(need: Need, sample: Sample, line_percent: float) -> Need:
    """``need`` with the most that its KV caches may ever take on this machine."""
    return msgspec.structs.replace(need, kv_most_bytes=most_kv_bytes(need, sample, line_percent))
