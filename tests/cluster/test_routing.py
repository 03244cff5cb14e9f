"""Which replica answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.cluster.routing import MUCH_BUSIER, Replica, Route, route


def chosen(replicas: list[Replica], holder: str | None = None) -> Route:
    found = route(replicas, holder)
    assert found is not None
    return found


def test_without_a_replica_there_is_nothing_to_route_to() -> None:
    assert route([]) is None


def test_the_least_loaded_by_its_slots_answers() -> None:
    replicas = [Replica("a", running=4, slots=16), Replica("b", running=2, slots=4), Replica("c", running=3, slots=8)]
    assert chosen(replicas).node == "a"


def test_equals_are_told_apart_by_name_so_that_the_last_one_falls_idle_first() -> None:
    assert chosen([Replica("b"), Replica("a")]).node == "a"


@pytest.mark.parametrize(
    ("running", "queued", "kept"), [(3, 0, True), (4, 0, False), (4, 5, False), (0, 0, True)], ids=str
)
def test_who_knows_the_conversation_is_kept_until_it_has_no_slot_and_is_much_busier(
    running: int, queued: int, kept: bool
) -> None:
    found = chosen([Replica("knows", running, queued, slots=4), Replica("free", slots=4)], holder="knows")
    assert found.known is kept
    assert found.node == ("knows" if kept else "free")


def test_a_full_holder_is_kept_where_the_others_are_nearly_as_full() -> None:
    assert chosen([Replica("knows", 4, 1, slots=4), Replica("other", 3, slots=4)], holder="knows").known


def test_the_reason_names_both() -> None:
    found = chosen([Replica("knows", 4, 4, slots=4), Replica("free", slots=4)], holder="knows")
    assert found.reason == "knows knows the conversation but is much busier than free"


def test_a_holder_that_is_gone_or_still_loads_is_not_waited_for() -> None:
    assert chosen([Replica("a"), Replica("b", ready=False)], holder="b").node == "a"
    assert chosen([Replica("a")], holder="gone").node == "a"


def test_requests_wait_for_a_loading_replica_where_there_is_no_other() -> None:
    assert chosen([Replica("a", queued=3, ready=False), Replica("b", ready=False)]).node == "b"


REPLICAS = st.lists(
    st.builds(
        Replica,
        st.text("abcd", min_size=1, max_size=2),
        st.integers(0, 40),
        st.integers(0, 40),
        st.integers(0, 16),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda one: one.node,
)


@given(REPLICAS, st.none() | st.text("abcd", min_size=1, max_size=2))
def test_a_route_leads_to_a_replica_that_is_not_much_busier_than_the_least_busy_unless_it_has_a_free_slot(
    replicas: list[Replica], holder: str | None
) -> None:
    found = chosen(replicas, holder)
    taken = next(one for one in replicas if one.node == found.node)
    ready = [one for one in replicas if one.ready] or replicas
    least = min(one.load for one in ready)
    assert taken in ready
    assert taken.load < 1 or taken.load <= least + MUCH_BUSIER
    assert found.known == (holder == taken.node)
    assert found.known or taken.load == least
    assert chosen(replicas[::-1], holder) == found
