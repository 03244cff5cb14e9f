"""How much memory a model's KV caches get: out of what is free, then of what others do not use, then of idle models."""

from typing import Any

import msgspec
import pytest

from plimsoll.memory.lease import LeaseMove, LeaseRequest, bounded, decide_lease
from plimsoll.memory.ledger import Need, Seat
from plimsoll.memory.load_options import longest_context
from plimsoll.memory.sample import Reading, Sample

GIB = 1024**3
CRITICAL = 95.0
ME = Seat("me", 10 * GIB, 10 * GIB, idle=False)


def sample(used_gib: float, total_gib: float = 100) -> Sample:
    return Sample(0.0, (Reading("host", int(total_gib * GIB), int(used_gib * GIB)),))


def move(
    used_gib: float, kv_gib: float, wanted_gib: float, needed_gib: float, *others: Seat, asked: tuple[str, ...] = ()
) -> LeaseMove:
    sizes = (int(size * GIB) for size in (kv_gib, wanted_gib, needed_gib))
    return decide_lease(LeaseRequest(*sizes, frozenset(asked)), ME, others, sample(used_gib), CRITICAL)


def other(name: str, held_gib: float = 10, **state: Any) -> Seat:
    return Seat(name, int(held_gib * GIB), int(held_gib * GIB), **{"idle": True, **state})


@pytest.mark.parametrize(
    ("used", "kv", "wanted", "needed", "granted"),
    [
        (50, 2, 8, 4, 8),  # all that is wanted is free
        (90, 2, 20, 4, 7),  # what is free is enough for the request that waits
        (95, 2, 8, 2, 2),  # nothing is free, and no request waits
        (99, 2, 8, 2, 2),  # above critical nothing is taken away
        (50, 8, 4, 0, 8),  # less than it has is granted as it is
    ],
)
def test_room_comes_out_of_what_is_free(used: float, kv: float, wanted: float, needed: float, granted: float) -> None:
    assert move(used, kv, wanted, needed) == LeaseMove("grant", int(granted * GIB))


def test_what_others_were_granted_and_have_not_taken_is_not_free() -> None:
    seat = msgspec.structs.replace(other("b", 5), footprint_bytes=0, idle=False)
    assert move(90, 2, 8, 4, seat).kv_bytes == 2 * GIB


def test_room_that_others_do_not_use_comes_back_before_a_model_is_evicted() -> None:
    giver, idle = other("giver", 10, returnable_bytes=GIB), other("idle", 10, last_used=1.0)
    assert move(95, 2, 8, 4, idle, giver) == LeaseMove("give_way", 2 * GIB, ("giver",))
    assert move(95, 2, 8, 4, idle, giver, asked=("giver",)) == LeaseMove("evict", 2 * GIB, ("giver",))
    assert move(95, 2, 8, 2, idle, giver) == LeaseMove("grant", 2 * GIB), "no request waits"


def test_a_model_that_would_free_too_little_is_not_evicted() -> None:
    assert move(95, 2, 30, 20, other("small", 1)) == LeaseMove("grant", 2 * GIB, more=False)


def test_memory_of_a_model_that_is_being_unloaded_is_waited_for() -> None:
    assert move(95, 2, 8, 4, other("leaves", leaving=True)).verdict == "wait"


@pytest.mark.parametrize(("state", "more"), [({"idle": False}, True), ({"pinned": True}, False)])
def test_a_denied_request_may_hope_for_what_runs(state: dict[str, bool], more: bool) -> None:
    assert move(95, 2, 8, 4, other("b", **state)) == LeaseMove("grant", 2 * GIB, more=more)


def test_the_most_is_what_the_machine_holds_without_anything_else_or_the_configured_limit() -> None:
    need = Need(measured_bytes=15 * GIB, kv_bytes=GIB, kv_token_bytes=1024**2, context=10**9, leased=True)
    assert bounded(need, sample(90), CRITICAL).kv_most_bytes == 80 * GIB
    assert longest_context(bounded(need, sample(90), CRITICAL)) == 80 * 1024 - 256
    capped = msgspec.structs.replace(need, kv_most_bytes=5 * GIB)
    assert bounded(capped, sample(90), CRITICAL).kv_most_bytes == 5 * GIB
    assert longest_context(msgspec.structs.replace(need, leased=False)) == 1024 - 256
