"""What follows from deaths and failed loads: a pure decision."""

from plimsoll.actors.exits import LOAD_COOL_DOWN_S, Failures
from plimsoll.actors.messages import State
from plimsoll.errors import LoadFailed

ERROR = LoadFailed("no such file")


def test_a_load_that_goes_on_failing_is_tried_again_by_itself_later_each_time() -> None:
    failures, now, delays = Failures(), 1000.0, []
    for _ in range(6):
        state, delay_s = failures.give_up(ERROR, now)
        assert state is State.FAILED
        delays.append(delay_s)
        now += delay_s
    assert delays == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]
    assert failures.give_up(ERROR, now + 300.0) == (State.FAILED, 5.0)


def test_whoever_asks_after_the_cool_down_is_not_kept_waiting_by_that() -> None:
    failures = Failures()
    for now in (1000.0, 1010.0, 1020.0):
        failures.give_up(ERROR, now)
    assert failures.refusal(1020.0 + LOAD_COOL_DOWN_S - 1) is ERROR
    assert failures.refusal(1020.0 + LOAD_COOL_DOWN_S) is None
