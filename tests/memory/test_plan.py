"""What fits and whom to evict, on figures in GiB so that they can be checked in the head."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.engine.chat.kv_budget import KvBudget, KvCost, Wish
from plimsoll.memory.ledger import MIB, Need, Plan, Seat, choose, clean_up_order, foresee, plan, room_bytes
from plimsoll.memory.load_options import longest_context
from plimsoll.memory.sample import Reading, Sample

GIB = 1024**3


def memory(used: float, total: float = 100, *more: Reading) -> Sample:
    return Sample(0.0, (Reading("host", int(total * GIB), int(used * GIB)), *more))


def seat(name: str, holds: float = 10, reserved: float | None = None, **flags: Any) -> Seat:
    flags = {"idle": True, **flags}
    granted = int((holds if reserved is None else reserved) * GIB)
    return Seat(name, granted, int(holds * GIB), **flags)


def ask(need: float, seats: list[Seat], sample: Sample) -> Plan:
    return plan(int(need * GIB), seats, sample, critical_percent=95.0)


def test_what_fits_is_loaded() -> None:
    answer = ask(20, [], memory(used=50))
    assert answer.verdict == "load"
    assert answer.percent_after == 70.0


def test_a_grant_counts_in_full_until_it_is_taken_or_given_back() -> None:
    loading = seat("a", holds=5, reserved=40, loaded=False)
    assert ask(20, [loading], memory(used=50)).verdict == "line"
    assert ask(9, [loading], memory(used=50)).verdict == "load"


def test_two_loads_can_not_both_take_the_same_free_bytes() -> None:
    first = ask(30, [], memory(used=50))
    second = ask(30, [seat("a", holds=0, reserved=30, loaded=False)], memory(used=50))
    assert (first.verdict, second.verdict) == ("load", "line")


def test_the_least_recently_used_goes_first_and_no_more_than_needed() -> None:
    seats = [seat("new", last_used=3), seat("old", last_used=1), seat("middle", last_used=2)]
    answer = ask(30, seats, memory(used=80))
    assert answer.verdict == "evict"
    assert answer.victims == ("old", "middle")


@pytest.mark.parametrize("flag", [{"idle": False}, {"pinned": True}, {"loaded": False}, {"leaving": True}])
def test_these_are_never_evicted_for_another(flag: dict[str, bool]) -> None:
    answer = ask(30, [seat("a", holds=40, **flag)], memory(used=80))
    assert answer.victims == ()
    assert answer.verdict in ("refuse", "wait", "line")


def test_who_is_in_the_way_is_named() -> None:
    seats = [seat("a", 20, idle=False), seat("b", 20, pinned=True), seat("c", 1)]
    answer = ask(60, seats, memory(used=60))
    assert answer.verdict == "refuse"
    assert answer.blockers == ("a is busy", "b is pinned")


def test_a_load_lines_up_behind_models_that_load_or_are_busy_and_not_behind_pinned_ones() -> None:
    assert ask(30, [seat("a", 40, idle=False)], memory(used=80)).verdict == "line"
    assert ask(30, [seat("a", 0, 40, loaded=False)], memory(used=60)).verdict == "line"
    assert ask(30, [seat("a", 40, idle=False, pinned=True)], memory(used=80)).verdict == "refuse"
    # What other programs hold does not come free by itself.
    assert ask(30, [seat("a", 10, idle=False)], memory(used=80)).verdict == "refuse"


def test_what_leaves_already_is_waited_for() -> None:
    assert ask(30, [seat("a", holds=40, leaving=True)], memory(used=80)).verdict == "wait"


def test_what_can_never_fit_evicts_nobody() -> None:
    answer = ask(96, [seat("a", holds=40)], memory(used=60))
    assert answer.verdict == "never"
    assert answer.victims == ()


def test_the_tightest_source_decides() -> None:
    limit = Reading("limit", 16 * GIB, 10 * GIB)
    assert ask(6, [], memory(50, 100, limit)).verdict == "refuse"
    assert ask(16, [], memory(50, 100, limit)).verdict == "never"
    assert ask(5, [], memory(50, 100, limit)).verdict == "load"


def test_the_need_is_estimated_until_it_was_measured() -> None:
    assert Need(weights_bytes=1000 * MIB, kv_bytes=50 * MIB).total_bytes == (1050 + 50 + 300) * MIB
    assert Need(weights_bytes=1000 * MIB, kv_bytes=50 * MIB, measured_bytes=700 * MIB).total_bytes == 750 * MIB


def test_the_first_way_that_fits_is_taken_and_the_smallest_makes_room() -> None:
    dense, packed = Need(weights_bytes=40 * GIB, dequantize=True), Need(weights_bytes=10 * GIB)
    assert choose([dense, packed], [], memory(used=20), 95.0).need == dense
    assert choose([dense, packed], [], memory(used=70), 95.0).need == packed
    crowded = choose([dense, packed], [seat("a", holds=50)], memory(used=90), 95.0)
    assert crowded.need == packed
    assert crowded.plan.verdict == "evict"


SEATS = st.lists(
    st.builds(
        Seat,
        name=st.text("abc", min_size=1, max_size=3),
        reserved_bytes=st.integers(0, 50 * GIB),
        footprint_bytes=st.integers(0, 50 * GIB),
        last_used=st.floats(0, 100),
        loaded=st.booleans(),
        idle=st.booleans(),
        pinned=st.booleans(),
        leaving=st.booleans(),
    ),
    max_size=6,
    unique_by=lambda one: one.name,
)


# Three ways: 20 GiB with room for 32,768 tokens, 12 GiB with the same room, 10 GiB with room for 4,096.
KIB = 1024
PER_TOKEN = 64 * KIB


def way(model_gib: float, tokens: int) -> Need:
    return Need(
        measured_bytes=int(model_gib * GIB),
        kv_bytes=(tokens + 256) * PER_TOKEN,
        kv_token_bytes=PER_TOKEN,
        context=131_072,
    )


WAYS = (way(18, 32_768), way(10, 32_768), way(9.5, 4096))


@pytest.mark.parametrize(
    ("used", "seats", "verdict", "tokens"),
    [
        (10, [], "load", 32_768),
        (82, [], "load", 32_768),
        (85, [], "load", 4096),
        # More is free than is granted: the worker has its grant.
        (0, [], "load", 32_768),
        # The least way makes room, and what is freed has room for a better one.
        (90, [seat("idle", 30)], "evict", 32_768),
        (90, [seat("idle", 6)], "evict", 4096),
        # Of many that could leave only so many do.
        (94, [seat("one", 9.5, last_used=1), seat("two", 30, last_used=2)], "evict", 4096),
        (90, [seat("gone", 30, idle=False, leaving=True)], "wait", 32_768),
        # More is granted than there is: the first that leave make up for that.
        (90, [seat("idle", 12, last_used=1), seat("loading", 0, 20, loaded=False)], "line", 0),
        (90, [seat("busy", 30, idle=False)], "line", 0),
    ],
)
def test_the_longest_conversation_is_what_is_granted_in_the_end(
    used: float, seats: list[Seat], verdict: str, tokens: int
) -> None:
    decision = foresee(WAYS, seats, memory(used), 95.0)
    assert decision.plan.verdict == verdict
    assert (longest_context(decision.granted) if decision.granted else 0) == tokens


def test_what_never_fits_has_no_conversation() -> None:
    assert foresee((way(96, 32_768),), [], memory(0), 95.0).granted is None


@pytest.mark.parametrize("tokens", [4096, 32_768, 200_000])
def test_a_worker_accepts_the_longest_conversation_and_not_one_token_more(tokens: int) -> None:
    need = way(1, tokens)
    longest = longest_context(need)
    assert longest == min(tokens, 131_072)
    chunk = 64
    budget = KvBudget(need.kv_bytes, KvCost(((PER_TOKEN, None),)), context=131_072, chunk=chunk)
    assert budget.never(Wish(longest - chunk, chunk)) is None
    if tokens < 131_072:
        assert budget.never(Wish(longest - chunk + 1, chunk))


@given(st.floats(0, 110), SEATS)
def test_what_is_foreseen_is_what_admission_comes_to(used: float, seats: list[Seat]) -> None:
    decision = foresee(WAYS, seats, memory(used), 95.0)
    assert decision == msgspec.structs.replace(choose(WAYS, seats, memory(used), 95.0), granted=decision.granted)
    if decision.plan.verdict in ("load", "evict"):
        assert decision.granted is not None
        if decision.plan.verdict == "load":
            assert WAYS.index(decision.granted) <= WAYS.index(decision.need)


def test_a_normal_clean_up_keeps_the_last_used_the_busy_and_the_pinned() -> None:
    seats = [seat("last", last_used=5), seat("old", last_used=1), seat("busy", last_used=2, idle=False)]
    seats += [seat("pinned", last_used=3, pinned=True), seat("newer", last_used=4)]
    assert [one.name for one in clean_up_order(seats, aggressive=False)] == ["old", "newer"]


def test_a_model_that_still_loads_is_not_the_last_used_one_that_stays() -> None:
    seats = [seat("a", last_used=1), seat("b", last_used=2), seat("loading", last_used=9, loaded=False)]
    assert [one.name for one in clean_up_order(seats, aggressive=False)] == ["a"]


def test_an_aggressive_clean_up_takes_all() -> None:
    seats = [seat("a", pinned=True), seat("b", idle=False), seat("c", loaded=False)]
    assert {one.name for one in clean_up_order(seats, aggressive=True)} == {"a", "b", "c"}


@given(st.integers(1, 120 * GIB), SEATS, st.floats(0, 110))
def test_a_grant_never_passes_the_critical_line_and_a_plan_holds_what_it_promises(
    need: int, seats: list[Seat], used: float
) -> None:
    sample = memory(used)
    answer = plan(need, seats, sample, 95.0)
    by_name = {one.name: one for one in seats}
    if answer.verdict == "load":
        assert need <= room_bytes(seats, sample, 95.0)
    if answer.verdict == "evict":
        assert all(by_name[name].evictable for name in answer.victims)
        left = [one for one in seats if one.name not in answer.victims]
        freed = sum(by_name[name].footprint_bytes for name in answer.victims)
        after = Sample(0.0, (Reading("host", sample.binding.total, sample.binding.used - freed),))
        assert plan(need, left, after, 95.0).verdict == "load"
