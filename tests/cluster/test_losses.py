"""What comes back of a node that is gone."""

from typing import Any

from plimsoll.cluster.replicas import RECENT_S, after_loss


def verdicts(returns: list[Any]) -> dict[str, str]:
    return {one.model: one.placement.verdict if one.placement else "stays away" for one in returns}


def test_pinned_models_come_first_then_the_most_recently_used(figures: Any) -> None:
    seats = [figures.seat("old", unused_s=200), figures.seat("young", unused_s=1)]
    seats += [figures.seat("pinned", unused_s=9000, pinned=True)]
    lost = figures.view("gone", 50, *seats)
    needs = {name: [figures.need(10)] for name in ("old", "young", "pinned")}
    returns = after_loss(lost, needs, [figures.node("a", 50)], figures.NOW)
    assert [one.model for one in returns] == ["pinned", "young", "old"]
    assert all(one.placement and one.placement.node == "a" for one in returns)


def test_each_return_counts_for_those_after_it(figures: Any) -> None:
    lost = figures.view("gone", 50, figures.seat("x", unused_s=1), figures.seat("y", unused_s=2))
    needs = {"x": [figures.need(30)], "y": [figures.need(30)]}
    assert verdicts(after_loss(lost, needs, [figures.node("a", 50)], figures.NOW)) == {"x": "load", "y": "refuse"}
    both = after_loss(lost, needs, [figures.node("a", 50), figures.node("b", 60)], figures.NOW)
    assert [one.placement.node for one in both if one.placement] == ["a", "b"]


def test_only_a_pinned_model_may_cost_one_that_served_recently(figures: Any) -> None:
    nodes = [figures.node("a", 90, figures.seat("other", 60, unused_s=100))]
    needs = {"x": [figures.need(30)]}
    for pinned, verdict in ((True, "evict"), (False, "refuse")):
        lost = figures.view("gone", 50, figures.seat("x", unused_s=1, pinned=pinned))
        assert verdicts(after_loss(lost, needs, nodes, figures.NOW)) == {"x": verdict}


def test_who_stays_away_is_told_why(figures: Any) -> None:
    seats = [
        figures.seat("twice", unused_s=1),
        figures.seat("leaving", unused_s=2, leaving=True),
        figures.seat("strange", unused_s=3),
        figures.seat("stale", unused_s=RECENT_S + 1),
    ]
    needs = {name: [figures.need(1)] for name in ("twice", "leaving", "stale")}
    lost = figures.view("gone", 50, *seats)
    returns = after_loss(lost, needs, [figures.node("a", 0)], figures.NOW, served_elsewhere={"twice"})
    assert [one.reason for one in returns] == [
        "twice has another replica",
        "leaving was being unloaded",
        "strange is not known here: what it needs was never reported",
        "stale was last used 301 s before; its next request loads it",
    ]


def test_the_lost_node_itself_is_not_chosen_even_while_it_is_still_listed(figures: Any) -> None:
    lost = figures.view("gone", 1, figures.seat("x", 1, unused_s=1))
    returns = after_loss(lost, {"x": [figures.need(1)]}, [figures.node("gone", 0)], figures.NOW)
    assert verdicts(returns) == {"x": "refuse"}


def test_a_load_that_the_node_had_in_flight_comes_back_too(figures: Any) -> None:
    lost = figures.view("gone", 50, figures.seat("x", 0, reserved=20, unused_s=9000, loaded=False))
    returns = after_loss(lost, {"x": [figures.need(20)]}, [figures.node("a", 0)], figures.NOW)
    assert verdicts(returns) == {"x": "load"}
