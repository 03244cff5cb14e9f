"""Memory figures in words and in error bodies."""

from plimsoll.memory.ledger import Seat, plan
from plimsoll.memory.memory_errors import GIB, never_fits, no_room
from plimsoll.memory.sample import Reading, Sample


def test_the_figures_of_what_never_fits_are_those_of_the_source_that_it_does_not_fit_into() -> None:
    fuller, smaller = Reading("host", 100 * GIB, 60 * GIB), Reading("limit", 4 * GIB, GIB)
    sample = Sample(0.0, (fuller, smaller))
    error = never_fits("huge", plan(10 * GIB, [], sample, critical_percent=95.0), sample)
    assert "10.0 GiB of 4.0 GiB" in error.message
    told = {key: error.details[key] for key in ("required_gb", "total_gb", "used_percent", "binding_source")}
    assert told == {"required_gb": 10.0, "total_gb": 4.0, "used_percent": 25.0, "binding_source": "limit"}


def test_the_hint_says_what_to_wait_for_or_to_do_and_not_how_things_are() -> None:
    seats = [
        Seat("busy", GIB, GIB),
        Seat("pinned", GIB, GIB, idle=True, pinned=True),
        Seat("loading", GIB, loaded=False),
        Seat("leaving", GIB, GIB, leaving=True),
        Seat("idle", GIB, GIB, idle=True),
        Seat("holds nothing", 0, loaded=False),
    ]
    sample = Sample(0.0, (Reading("host", 100 * GIB, 90 * GIB),))
    error = no_room("new", plan(50 * GIB, seats, sample, critical_percent=95.0), sample)
    assert error.details["hint"] == (
        "wait until busy is idle, or unpin or unload pinned, or wait until loading is loaded and has answered, "
        "or wait until leaving is unloaded"
    )
    assert error.details["blockers"] == [
        "busy is busy",
        "pinned is pinned",
        "loading is loading",
        "leaving is still being unloaded",
    ]


def test_where_nothing_of_ours_is_in_the_way_the_hint_says_whose_the_memory_is() -> None:
    sample = Sample(0.0, (Reading("host", 100 * GIB, 90 * GIB),))
    error = no_room("new", plan(50 * GIB, [], sample, critical_percent=95.0), sample)
    assert error.details["hint"] == "other programs hold the memory: end some of them"
