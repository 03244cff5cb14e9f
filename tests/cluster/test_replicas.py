"""Another replica after a queue that lasts, one less after a quiet time that lasts."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from plimsoll.cluster.placement import Placement
from plimsoll.cluster.replicas import Demand, Rules, look, replicate, retire
from plimsoll.cluster.routing import Replica

RULES = Rules(grow_after_s=15, shrink_after_s=300, spare_recent_s=300)
BUSY = Replica("a", running=4, queued=2, slots=4)


def asked(figures: Any, replicas: list[Replica], queued_for_s: float, *nodes: Any) -> list[Placement]:
    demand = Demand(queued_since=figures.NOW - queued_for_s)
    needs = [figures.need(20)]
    return replicate("m", demand=demand, replicas=replicas, needs=needs, nodes=nodes, now=figures.NOW, rules=RULES)


def test_a_queue_that_lasts_on_all_replicas_earns_another_one(figures: Any) -> None:
    assert asked(figures, [BUSY], 14, figures.node("b", 10)) == []
    (answer,) = asked(figures, [BUSY], 15, figures.node("b", 10))
    assert (answer.verdict, answer.node) == ("load", "b")


def test_one_replica_without_a_queue_is_enough_to_start_anew() -> None:
    demand = look(Demand(), [BUSY], 0, RULES)
    assert demand.queued_since == 0
    assert look(demand, [BUSY, Replica("b", running=1, slots=4)], 5, RULES).queued_since is None
    assert look(demand, [BUSY, BUSY], 5, RULES).queued_since == 0


def test_while_a_replica_loads_no_other_is_wanted() -> None:
    assert look(Demand(queued_since=0), [BUSY, Replica("b", queued=1, ready=False)], 20, RULES).queued_since is None


def test_a_replica_never_costs_a_model_that_served_recently(figures: Any) -> None:
    full = figures.node("b", 90, figures.seat("other", 60, unused_s=200))
    (answer,) = asked(figures, [BUSY], 20, full)
    assert answer.verdict == "refuse"
    assert "other served 200 s ago" in answer.reasons["b"]
    stale = figures.node("b", 90, figures.seat("other", 60, unused_s=301))
    (evicting,) = asked(figures, [BUSY], 20, stale)
    assert evicting.verdict == "evict"


def test_a_long_queue_earns_as_many_as_it_would_fill_but_no_more_than_double(figures: Any) -> None:
    nodes = [figures.node(name, 10) for name in "cdef"]
    two = [Replica("a", 4, 20, slots=4), Replica("b", 4, 1, slots=4)]
    assert sorted(one.node for one in asked(figures, two, 20, *nodes)) == ["c", "d"]
    three = [Replica(name, 4, 1, slots=4) for name in "abg"]
    assert len(asked(figures, three, 20, *nodes)) == 1


def test_more_replicas_than_there_is_room_for_end_with_the_reason(figures: Any) -> None:
    two = [Replica("a", 4, 20, slots=4), Replica("b", 4, 20, slots=4)]
    answers = asked(figures, two, 20, figures.node("c", 10))
    assert [one.verdict for one in answers] == ["load", "refuse"]
    assert answers[1].reasons == {"c": "c has it already, or is about to"}


def test_a_surplus_replica_goes_after_a_quiet_time_that_lasts() -> None:
    replicas = [Replica("a", running=2, slots=4), Replica("b", slots=4)]
    demand = look(Demand(), replicas, 0, RULES)
    assert retire(demand, replicas, 299, RULES) is None
    assert retire(demand, replicas, 300, RULES) == "b"


def test_a_surplus_ends_when_the_others_would_be_more_than_half_full() -> None:
    demand = Demand(surplus_since=0)
    assert look(demand, [Replica("a", running=3, slots=4), Replica("b", slots=4)], 9, RULES).surplus_since is None


def test_neither_the_last_one_nor_a_used_nor_a_pinned_nor_a_loading_one_is_retired() -> None:
    assert look(Demand(), [Replica("a")], 0, RULES).surplus_since is None
    demand = Demand(surplus_since=0)
    used = [Replica("a", running=1, slots=4), Replica("b", queued=1, slots=4)]
    assert retire(demand, used, 999, RULES) is None
    assert retire(demand, [Replica("a"), Replica("b")], 999, RULES, pinned=frozenset("ab")) is None
    assert retire(demand, [Replica("a", ready=False), Replica("b", ready=False)], 999, RULES) is None


REPLICAS = st.lists(
    st.builds(Replica, st.sampled_from("abcd"), st.integers(0, 8), st.integers(0, 4), st.integers(1, 8), st.booleans()),
    max_size=4,
    unique_by=lambda one: one.node,
)


@given(st.lists(REPLICAS, min_size=1, max_size=40))
def test_growing_and_shrinking_are_never_both_due_and_each_had_its_time(looks: list[list[Replica]]) -> None:
    demand = Demand()
    for second, replicas in enumerate(looks):
        before, demand = demand, look(demand, replicas, float(second), RULES)
        assert demand.queued_since is None or demand.surplus_since is None or any(one.queued for one in replicas)
        assert demand.queued_since in (None, before.queued_since, second)
        assert demand.surplus_since in (None, before.surplus_since, second)
        if demand.queued_since is not None:
            assert all(one.queued for one in replicas)
