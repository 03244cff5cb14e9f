"""Tokens per second out of a counter that is read now and then."""

import pytest

from plimsoll.actors.model_records import Throughput


def rate(*counts):
    throughput = Throughput()
    for at, tokens in counts:
        throughput.note(tokens, at)
    return throughput.per_second


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([], 0),
        ([(10, 500)], 0),
        ([(10, 500), (11, 530)], 30),
        ([(10, 500), (11, 530), (12, 560), (13, 560), (14, 560)], 0),
        ([(10, 0), (11, 100), (12, 110), (13, 120), (14, 130)], 10),
        ([(10, 0), (10.1, 1), (10.1, 1), (10.2, 2)], 10),
    ],
)
def test_the_rate_is_that_of_the_last_two_seconds(counts, expected):
    assert rate(*counts) == pytest.approx(expected)


def test_a_pause_is_not_part_of_the_rate():
    assert rate((10, 0), (11, 50), (70, 55), (70.5, 60)) == 10
