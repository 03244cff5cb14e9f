"""How long a client that is sent away is asked to wait."""

import pytest

from plimsoll.actors.expected_wait import Pace, expected_wait_s


def pace(answer_s: float | None = None, load_s: float | None = None) -> Pace:
    made = Pace()
    made.answer_s, made.load_s = answer_s, load_s
    return made


@pytest.mark.parametrize(
    ("measured", "ahead", "loaded", "wait_s"),
    [
        (pace(), 64, True, 1.0),  # nothing was measured
        (pace(0.5, 20.0), 8, True, 4.0),
        (pace(0.5, 20.0), 8, False, 24.0),
        (pace(None, 20.0), 8, False, 20.0),
        (pace(0.001, 0.1), 8, False, 1.0),
        (pace(5.0, 20.0), 64, True, 60.0),
    ],
)
def test_the_wait_is_the_queue_times_the_time_per_answer_and_the_load(
    measured: Pace, ahead: int, loaded: bool, wait_s: float
) -> None:
    assert expected_wait_s(measured, ahead, loaded=loaded) == wait_s


def test_the_pace_is_the_time_between_endings_while_there_is_work() -> None:
    made = Pace()
    made.busy(10.0)
    made.busy(10.0)
    made.answered(14.0)
    made.answered(14.0)  # of the same batch
    assert made.answer_s == pytest.approx(0.8 * 4.0)
    made.idle()
    made.answered(50.0)  # nobody had begun
    made.busy(100.0)
    made.answered(103.2)
    assert made.answer_s == pytest.approx(3.2)
