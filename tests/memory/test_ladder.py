"""What has to be done now, by the newest samples and what still runs."""

import pytest

from plimsoll.memory.ladder import Moves, moves
from plimsoll.memory.ledger import Seat
from plimsoll.memory.sample import Level

N, W, C, E = Level.NORMAL, Level.WARNING, Level.CRITICAL, Level.EMERGENCY


def seat(name: str, **flags: bool) -> Seat:
    return Seat(name, 10, 10, last_used=float(ord(name[0])), **flags)


IDLE, OLD, BUSY = seat("idle", idle=True), seat("aged", idle=True), seat("busy")
COLD = seat("cold", loaded=False, running=False)
LOADING = seat("eager", loaded=False)
DRAINING = seat("draining", leaving=True, until_eased=True)
UNLOADED = seat("unloaded", leaving=True)
ALL = (BUSY, COLD, DRAINING, IDLE, LOADING, OLD, UNLOADED)


@pytest.mark.parametrize("confirmed", [C, E])
def test_at_critical_all_that_run_leave_and_who_has_no_worker_or_leaves_already_does_not(confirmed: Level) -> None:
    assert moves(confirmed, confirmed, ALL) == Moves(leave=("aged", "busy", "eager", "idle"))


def test_a_single_critical_sample_has_nobody_leave_and_nobody_go_on() -> None:
    assert moves(C, N, ALL) == Moves()


def test_at_warning_idle_models_are_cleaned_up_and_who_drains_for_memory_goes_on() -> None:
    assert moves(W, W, ALL) == Moves(go_on=("draining",), clean_up=True)
    assert moves(W, W, (BUSY, IDLE)) == Moves()


def test_one_healthy_sample_is_enough_to_go_on() -> None:
    assert moves(N, N, ALL) == Moves(go_on=("draining",))


def test_it_remembers_nothing() -> None:
    first = moves(E, E, (BUSY,))
    assert moves(N, N, (BUSY,)) == Moves()
    assert moves(E, E, (BUSY,)) == first == Moves(leave=("busy",))
