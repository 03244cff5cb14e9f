"""The memory ledger: what fits and which models to evict, decided from the models' figures and one sample."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from plimsoll.memory.sample import Sample

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
    With ``leased`` the KV caches begin with ``kv_bytes`` and may grow by leases, up to ``kv_most_bytes`` (0: up to what
    the machine holds); this way is chosen only if ``headroom_bytes`` more are free for that. ``longest`` is the longest
    conversation in tokens, as the worker has measured it; 0 before there is one.
    """

    weights_bytes: int = 0
    kv_bytes: int = 0
    measured_bytes: int = 0
    dequantize: bool = False
    kv_token_bytes: int = 0
    context: int = 0
    ranks: int = 1
    leased: bool = False
    kv_most_bytes: int = 0
    headroom_bytes: int = 0
    longest: int = 0

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
    request is not idle before it has answered it, so it is not evicted for another one in between. ``until_eased``
    marks a model that drains only while memory is critically full, or drains faster for it. ``device_bytes`` of its
    footprint lie in the memory of GPUs. ``returnable_bytes`` of what was granted are leases for KV caches, which the
    worker hands back if it does not use them.

    Of the requests that wait for it the last gives up at ``waits_until``; the last of those that have lost a worker at
    ``paused_until``, and the oldest of those waits since ``paused_since``.
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
    until_eased: bool = False
    paused_since: float = math.inf
    paused_until: float = 0.0
    waits_until: float = 0.0
    returnable_bytes: int = 0
    device_bytes: int = 0

    @property
    def claim_bytes(self) -> int:
        """Bytes it may still take beyond its footprint: a grant counts in full until it is given back."""
        # A draining model still generates, so its KV caches may still grow.
        stopping = self.leaving and not self.loaded
        return 0 if stopping else max(0, self.reserved_bytes - self.footprint_bytes)

    @property
    def gain_bytes(self) -> int:
        """Bytes that unloading it frees: what it holds, and what it may still take."""
        return self.footprint_bytes + self.claim_bytes

    @property
    def evictable(self) -> bool:
        return self.loaded and self.idle and not (self.pinned or self.leaving)

    @property
    def comes_free(self) -> bool:
        """Whether it can be evicted once it has answered."""
        return not (self.evictable or self.pinned or self.leaving)


class Plan(msgspec.Struct, frozen=True):
    """The answer to "may this be loaded": what to do now, and the figures that say why.

    ``verdict``: ``load`` now; ``evict`` the first of ``victims``, verify, and ask again; ``wait`` for one that leaves
    already; ``line`` up behind models that load or are busy; ``refuse`` for now; ``never`` on this machine.
    ``blockers`` say why models can't be evicted, ``remedies`` what ends that, in the same order.
    """

    verdict: Literal["load", "evict", "wait", "line", "refuse", "never"]
    required_bytes: int
    available_bytes: int
    evictable_bytes: int
    percent_after: float
    victims: tuple[str, ...] = ()
    blockers: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()


class Decision(msgspec.Struct, frozen=True):
    """The plan for one of several ways to load a model.

    ``granted`` is the way in which it is loaded once the plan was carried out, where that was asked for.
    """

    need: Need
    plan: Plan
    granted: Need | None = None


def choose(
    needs: Sequence[Need],
    seats: Sequence[Seat],
    sample: Sample,
    critical_percent: float,
    held_bytes: int = 0,
    *,
    ahead_bytes: int = 0,
) -> Decision:
    """The first way that fits as things are; if none does, the plan for the last one, which takes least.

    ``held_bytes`` of what the load needs are in use already, for it. ``ahead_bytes`` is what an older load waits for.
    """
    decision = None
    for need in needs:
        needed = need.total_bytes + need.headroom_bytes
        decision = Decision(need, plan(needed, seats, sample, critical_percent, held_bytes, ahead_bytes=ahead_bytes))
        if decision.plan.verdict == "load":
            return decision
    if decision is None:
        raise ValueError("a model can't be loaded in no way at all")
    return decision


def foresee(
    needs: Sequence[Need], seats: Sequence[Seat], sample: Sample, critical_percent: float, held_bytes: int = 0
) -> Decision:
    """As ``choose``, with what will be granted in the end, or None.

    It simulates admission: wait for models that are being unloaded, then evict one victim at a time and decide anew. So
    a plan for the smallest way may end in a better way.
    """
    first = choose(needs, seats, sample, critical_percent, held_bytes)
    gone = [seat for seat in seats if seat.leaving]
    while True:
        seats = [seat for seat in seats if seat not in gone]
        sample = without(sample, sum(seat.footprint_bytes for seat in gone))
        now = choose(needs, seats, sample, critical_percent, held_bytes)
        if now.plan.verdict != "evict":
            break
        gone = [seat for seat in seats if seat.name == now.plan.victims[0]]
    return msgspec.structs.replace(first, granted=now.need if now.plan.verdict == "load" else None)


def without(sample: Sample, footprint_bytes: int) -> Sample:
    """The sample as it would be if processes had freed so many bytes."""
    held = sample.of_models
    readings = (
        msgspec.structs.replace(one, used=max(0, one.used - footprint_bytes)) if one in held else one
        for one in sample.readings
    )
    return msgspec.structs.replace(sample, readings=tuple(readings))


def plan(
    need_bytes: int,
    seats: Sequence[Seat],
    sample: Sample,
    critical_percent: float,
    held_bytes: int = 0,
    *,
    ahead_bytes: int = 0,
) -> Plan:
    """Whether ``need_bytes`` fit below critical in every source, and which models to evict if not.

    ``held_bytes`` of them are in use already. ``ahead_bytes`` is what a load waits for that was asked for earlier:
    this load goes first only if the older one still fits once all unloads are complete.
    """
    distance = distance_bytes(seats, sample, critical_percent) + held_bytes
    room = max(0, distance)
    candidates = in_eviction_order(seats)
    evictable = sum(seat.gain_bytes for seat in candidates)
    leaving = sum(seat.gain_bytes for seat in seats if seat.leaving)
    victims: list[Seat] = []
    missing = need_bytes - distance
    for seat in candidates:
        if missing <= 0:
            break
        victims.append(seat)
        missing -= seat.gain_bytes
    gained = sum(seat.gain_bytes for seat in victims)
    binding = sample.binding_of_models
    percent_after = 100.0 * (binding.used + need_bytes - held_bytes - gained + _claims(seats)) / binding.total
    figures = (need_bytes, room, evictable, round(max(0.0, percent_after), 1))
    in_the_way = [seat for seat in seats if not seat.evictable and seat.gain_bytes]
    blockers, remedies = tuple(map(blocker, in_the_way)), tuple(map(remedy, in_the_way))
    if need_bytes > most_bytes(sample, critical_percent):
        return Plan("never", *figures)
    if missing > leaving:
        free_later = sum(seat.gain_bytes for seat in seats if seat.comes_free)
        verdict: Literal["line", "refuse"] = "line" if missing <= leaving + free_later else "refuse"
        return Plan(verdict, *figures, blockers=blockers, remedies=remedies)
    if missing > 0 or (ahead_bytes and need_bytes + ahead_bytes > distance + evictable + leaving):
        return Plan("wait", *figures, blockers=blockers, remedies=remedies)
    if victims:
        return Plan("evict", *figures, victims=tuple(seat.name for seat in victims))
    return Plan("load", *figures)


def room_bytes(seats: Sequence[Seat], sample: Sample, critical_percent: float) -> int:
    """What may still be granted: the least of every source's distance to critical, less what is granted already."""
    return max(0, distance_bytes(seats, sample, critical_percent))


def distance_bytes(seats: Iterable[Seat], sample: Sample, critical_percent: float) -> int:
    """As ``room_bytes``, but negative if more is granted than there is: an eviction has to free that first."""
    held = sample.of_models
    rooms = ((one, int(one.total * critical_percent / 100) - one.used) for one in sample.readings)
    # Where models have a GPU's memory, the host only needs room for one more process.
    return min(room for one, room in rooms if one in held or room < PROCESS_BYTES) - _claims(seats)


def most_bytes(sample: Sample, critical_percent: float) -> int:
    """What could be granted if nothing else used any memory; more never fits."""
    return int(min(reading.total for reading in sample.of_models) * critical_percent / 100)


def in_eviction_order(seats: Iterable[Seat]) -> list[Seat]:
    """Idle, unpinned models that have served, least recently used first."""
    return sorted((seat for seat in seats if seat.evictable), key=lambda seat: seat.last_used)


def clean_up_order(seats: Sequence[Seat], *, aggressive: bool) -> list[Seat]:
    """Which models a clean-up unloads, least recently used first.

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


def remedy(seat: Seat) -> str:
    """What has to happen before it can be evicted, in words."""
    if seat.leaving:
        return f"wait until {seat.name} is unloaded"
    if not seat.loaded:
        return f"wait until {seat.name} is loaded and has answered"
    if not seat.idle:
        return f"wait until {seat.name} is idle"
    return f"unpin or unload {seat.name}"


def admission_open(*, critical: bool, forecast: bool, blind: bool) -> bool:
    """Whether loads may be granted at all: not at critical, not when critical is seconds away, not without readings.

    ``critical`` is decided by the newest sample: a level that hysteresis holds does not say what fits now.
    """
    return not (critical or forecast or blind)


def _claims(seats: Iterable[Seat]) -> int:
    return sum(seat.claim_bytes for seat in seats)
