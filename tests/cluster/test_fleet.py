"""What is kept of all nodes between their reports."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.cluster.fleet import BOOKED_S, Fleet
from plimsoll.cluster.node import SILENT_S, NodeView, Traffic
from plimsoll.cluster.placement import place
from plimsoll.cluster.routing import Replica
from plimsoll.memory.ledger import Need, Seat
from plimsoll.memory.sample import Level, Reading, Sample

GIB = 1024**3
NOW = 1000.0


def test_two_loads_decided_between_reports_can_not_both_take_the_same_bytes(figures: Any) -> None:
    fleet = Fleet()
    fleet.report(figures.view("a", 50), NOW)
    needs = [figures.need(30)]
    first = place("x", needs, fleet.nodes, NOW)
    fleet.book(first.node, "x", needs[0].total_bytes, NOW)
    assert place("y", needs, fleet.nodes, NOW).verdict == "line"
    assert fleet.replicas("x") == [Replica("a", ready=False)]


def test_a_booking_lasts_until_the_node_shows_it_refuses_it_or_never_speaks_of_it(figures: Any) -> None:
    fleet = Fleet()

    def left() -> float:
        return next(iter(fleet.nodes)).distance_bytes / GIB

    fleet.report(figures.view("a", 50), NOW)
    fleet.book("a", "x", 30 * GIB, NOW)
    fleet.report(figures.view("a", 50), NOW + BOOKED_S - 1)
    assert left() == 15
    fleet.report(figures.view("a", 60, figures.seat("x", holds=10, reserved=30, loaded=False)), NOW + BOOKED_S - 1)
    assert left() == 15
    fleet.report(figures.view("a", 50), NOW + BOOKED_S - 1)
    assert left() == 45
    fleet.book("a", "x", 30 * GIB, NOW)
    fleet.unbook("a", "x")
    assert left() == 45
    assert not fleet.replicas("x")
    fleet.book("a", "x", 30 * GIB, NOW)
    fleet.report(figures.view("a", 50), NOW + BOOKED_S)
    assert left() == 45


def test_replicas_are_found_by_model_and_those_that_leave_are_none(figures: Any) -> None:
    fleet = Fleet()
    traffic = (figures.traffic("x", running=2, queued=1),)
    fleet.report(figures.view("a", 50, figures.seat("x"), figures.seat("y", leaving=True), traffic=traffic), NOW)
    fleet.report(figures.view("b", 50, figures.seat("x", loaded=False)), NOW)
    assert fleet.replicas("x") == [Replica("a", 2, 1, 4), Replica("b", ready=False)]
    assert fleet.replicas("y") == []
    fleet.report(figures.view("a", 50), NOW + 1)
    assert fleet.replicas("x") == [Replica("b", ready=False)]


def test_what_was_sent_since_the_report_counts_as_queued(figures: Any) -> None:
    fleet = Fleet()
    view = figures.view("a", 50, figures.seat("x"), traffic=(figures.traffic("x", running=1),))
    fleet.report(view, NOW)
    fleet.sent("a", "x")
    fleet.book("a", "y", GIB, NOW)
    assert fleet.replicas("x")[0].queued == 1
    fleet.report(view, NOW + 1)
    assert fleet.replicas("x")[0].queued == 0
    fleet.sent("gone", "x")


def test_a_node_that_falls_silent_is_listed_and_forgotten_when_it_is_given_up(figures: Any) -> None:
    fleet = Fleet()
    fleet.report(figures.view("a", 50, figures.seat("x")), NOW)
    fleet.report(figures.view("b", 50), NOW + SILENT_S + 1)
    assert [one.id for one in fleet.silent(NOW + SILENT_S)] == []
    assert [one.id for one in fleet.silent(NOW + SILENT_S + 1)] == ["a"]
    lost = fleet.lose("a")
    assert lost is not None
    assert [one.name for one in lost.seats] == ["x"]
    assert fleet.replicas("x") == []
    assert fleet.node("a") is None
    assert fleet.lose("a") is None


SIZES = st.integers(1, 60)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["report", "book", "unbook", "sent", "lose"]),
            st.sampled_from("ab"),
            st.sampled_from("xyz"),
            SIZES,
        ),
        max_size=40,
    )
)
def test_what_it_keeps_is_what_a_fresh_look_at_the_last_reports_would_find(
    steps: list[tuple[str, str, str, int]],
) -> None:
    fleet = Fleet()
    for what, node, model, size in steps:
        if what == "report":
            seats = (Seat(model, size * GIB, 0, NOW, idle=True),)
            sample = Sample(NOW, (Reading("host", 100 * GIB, size * GIB),))
            fleet.report(NodeView(node, node, sample, Level.NORMAL, 85.0, 95.0, seats, (Traffic(model, 1),), NOW), NOW)
        elif what == "lose":
            fleet.lose(node)
        elif fleet.node(node) is None:
            continue
        elif what == "sent":
            fleet.sent(node, model)
        elif what == "unbook":
            fleet.unbook(node, model)
        else:
            answer = place(model, [Need(measured_bytes=size * GIB)], fleet.nodes, NOW)
            if answer.verdict == "load":
                fleet.book(answer.node, model, size * GIB, NOW)
        for one in fleet.nodes:
            assert one.view.last_seen == NOW
            assert {seat.name for seat in one.seats} == one.models
        held = {(one.id, name) for one in fleet.nodes for name in one.models}
        assert held == {(replica.node, name) for name in "xyz" for replica in fleet.replicas(name)}
        assert msgspec.msgpack.encode([one.view for one in fleet.nodes])
