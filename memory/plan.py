"""What fits and whom to evict: pure decisions over a snapshot of the models and one sample."""

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from plimsoll.memory.sample import Level, Sample

MIB = 1024**2
# A worker without its model: interpreter, MLX, tokenizer.
PROCESS_BYTES = 300 * MIB
# Weights take a little more than their bytes: alignment, buffers of the load.
_WEIGHTS_MARGIN = 1.05


class Need(msgspec.Struct, frozen=True):
    """One way to load a model and what it takes.

    ``weights_bytes`` as the worker will hold them, ``dequantize`` says in which form; ``kv_bytes`` is what its KV
    caches may grow to, at ``kv_token_bytes`` a token, up to ``context`` tokens. ``measured_bytes`` is the footprint
    seen right after a former load in this form, 0 if never. ``ranks`` processes of a group hold it here between them.
    """

    weights_bytes: int = 0
    kv_bytes: int = 0
    measured_bytes: int = 0
    dequantize: bool = False
    kv_token_bytes: int = 0
    context: int = 0
    ranks: int = 1

    @property
    def total_bytes(self) -> int:
        """Weights x 1.05 + 300 MiB a process, or what was measured in place of both; and the KV budget."""
        estimate = int(self.weights_bytes * _WEIGHTS_MARGIN) + PROCESS_BYTES * self.ranks
        return (self.measured_bytes or estimate) + self.kv_bytes

    def times(self, ranks: int) -> "Need":
        """What so many ranks need together of which each needs this."""
        sizes = ("weights_bytes", "kv_bytes", "measured_bytes", "kv_token_bytes")
        return msgspec.structs.replace(self, ranks=ranks, **{key: ranks * getattr(self, key) for key in sizes})


class Seat(msgspec.Struct, frozen=True):
    """One model that takes memory or is about to.

    ``reserved_bytes`` is what was granted, ``footprint_bytes`` what its worker holds right now. ``last_used`` on the
    monotonic clock; ``running`` is false for a model that has no worker yet. A model that was loaded for a waiting
    request is not idle before it has answered it, so it is not evicted for another one in between.
    """

    name: str
    reserved_bytes: int
    footprint_bytes: int = 0
    last_used: float = 0.0
    loaded: bool = True
    idle: bool = False
    pinned: bool = False
    running: bool = True
    leaving: bool = False

    @property
    def claim_bytes(self) -> int:
        """What it may still take beyond what it holds: a grant counts in full until it is given back."""
        # One that drains still generates, so its KV caches may still grow.
        stopping = self.leaving and not self.loaded
        return 0 if stopping else max(0, self.reserved_bytes - self.footprint_bytes)

    @property
    def gain_bytes(self) -> int:
        """What its end would free: what it holds and what it might have taken."""
        return self.footprint_bytes + self.claim_bytes

    @property
    def evictable(self) -> bool:
        return self.loaded and self.idle and not (self.pinned or self.leaving)


class Plan(msgspec.Struct, frozen=True):
    """The answer to "may this be loaded": what to do now, and the figures that say why.

    ``verdict``: ``load`` now; ``evict`` the first of ``victims``, verify, and ask again; ``wait`` for one that leaves
    already; ``refuse`` for now; ``never`` on this machine.
    """

    verdict: Literal["load", "evict", "wait", "refuse", "never"]
    required_bytes: int
    available_bytes: int
    evictable_bytes: int
    percent_after: float
    victims: tuple[str, ...] = ()
    blockers: tuple[str, ...] = ()


class Decision(msgspec.Struct, frozen=True):
    """The plan for one of several ways to load a model."""

    need: Need
    plan: Plan


def choose(
    needs: Sequence[Need], seats: Sequence[Seat], sample: Sample, critical_percent: float, held_bytes: int = 0
) -> Decision:
    """The first way that fits as things are; if none does, the plan for the last one, which takes least.

    ``held_bytes`` of what the load needs are in use already, for it.
    """
    decision = None
    for need in needs:
        decision = Decision(need, plan(need.total_bytes, seats, sample, critical_percent, held_bytes))
        if decision.plan.verdict == "load":
            return decision
    if decision is None:
        raise ValueError("a model can't be loaded in no way at all")
    return decision


def plan(need_bytes: int, seats: Sequence[Seat], sample: Sample, critical_percent: float, held_bytes: int = 0) -> Plan:
    """Whether ``need_bytes`` fit below the critical line of every source, and whom to evict if not.

    ``held_bytes`` of them are in use already.
    """
    distance = distance_bytes(seats, sample, critical_percent) + held_bytes
    room = max(0, distance)
    candidates = in_eviction_order(seats)
    evictable = sum(seat.gain_bytes for seat in candidates)
    victims: list[Seat] = []
    missing = need_bytes - distance
    for seat in candidates:
        if missing <= 0:
            break
        victims.append(seat)
        missing -= seat.gain_bytes
    gained = sum(seat.gain_bytes for seat in victims)
    binding = sample.binding
    percent_after = 100.0 * (binding.used + need_bytes - held_bytes - gained + _claims(seats)) / binding.total
    figures = (need_bytes, room, evictable, round(max(0.0, percent_after), 1))
    if need_bytes > most_bytes(sample, critical_percent):
        return Plan("never", *figures)
    if need_bytes <= room:
        return Plan("load", *figures)
    if missing <= 0:
        return Plan("evict", *figures, victims=tuple(seat.name for seat in victims))
    leaving = sum(seat.footprint_bytes for seat in seats if seat.leaving)
    if missing <= leaving:
        return Plan("wait", *figures)
    return Plan("refuse", *figures, blockers=tuple(blocker(seat) for seat in seats if not seat.evictable))


def room_bytes(seats: Sequence[Seat], sample: Sample, critical_percent: float) -> int:
    """What may still be granted: the least of every source's distance to critical, less what is granted already."""
    return max(0, distance_bytes(seats, sample, critical_percent))


def distance_bytes(seats: Iterable[Seat], sample: Sample, critical_percent: float) -> int:
    """As ``room_bytes``, but negative where more is granted than there is: an eviction makes up for that first."""
    distance = min(int(one.total * critical_percent / 100) - one.used for one in sample.readings)
    return distance - _claims(seats)


def most_bytes(sample: Sample, critical_percent: float) -> int:
    """What could be granted if nothing else used any memory; more never fits."""
    return int(min(reading.total for reading in sample.readings) * critical_percent / 100)


def in_eviction_order(seats: Iterable[Seat]) -> list[Seat]:
    """Idle, unpinned models that have served, least recently used first."""
    return sorted((seat for seat in seats if seat.evictable), key=lambda seat: seat.last_used)


def clean_up_order(seats: Sequence[Seat], *, aggressive: bool) -> list[Seat]:
    """Whom a clean-up unloads, least recently used first.

    Normal: every idle, unpinned model, but the most recently used model of all stays. Aggressive: all of them.
    """
    present = sorted((seat for seat in seats if seat.running and not seat.leaving), key=lambda seat: seat.last_used)
    if aggressive:
        return present
    loaded = [seat for seat in present if seat.loaded]
    return [seat for seat in loaded[:-1] if seat.evictable]


def blocker(seat: Seat) -> str:
    """Why it can't be evicted, in words."""
    if seat.leaving:
        return f"{seat.name} is still being unloaded"
    if not seat.loaded:
        return f"{seat.name} is loading"
    if not seat.idle:
        return f"{seat.name} is busy"
    return f"{seat.name} is pinned"


def admission_open(level: Level, *, forecast: bool, blind: bool) -> bool:
    """Whether loads may be granted at all: not at critical, not when critical is seconds away, not without readings."""
    return level < Level.CRITICAL and not forecast and not blind


def _claims(seats: Iterable[Seat]) -> int:
    return sum(seat.claim_bytes for seat in seats)
