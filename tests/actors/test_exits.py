"""What follows from deaths and failed loads: a pure decision."""

from plimsoll.actors.status import State
from plimsoll.actors.worker_deaths import LOAD_COOL_DOWN_S, Failures
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
    refusal = failures.refusal(1020.0 + LOAD_COOL_DOWN_S - 1)
    assert refusal
    assert refusal.message == ERROR.message
    assert failures.refusal(1020.0 + LOAD_COOL_DOWN_S) is None


def test_every_refusal_is_an_error_of_its_own_with_the_time_that_is_left() -> None:
    failures = Failures()
    failures.give_up(ERROR, 1000.0)
    first, second = failures.refusal(1001.0), failures.refusal(1003.0)
    assert first
    assert second
    assert (first.retry_after_s, second.retry_after_s) == (4.0, 2.0)
    assert ERROR.retry_after_s is None
