"""Forecasts on made-up timelines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.memory.levels import History, seconds_to_critical
from plimsoll.memory.sample import Reading, Sample

TOTAL = 10**9


def at(time_s: float, percent: float, source: str = "host") -> Sample:
    return Sample(time_s, (Reading(source, TOTAL, round(percent * TOTAL / 100)),))


def line(start: float, per_s: float, count: int = 11, step_s: float = 0.25) -> list[Sample]:
    return [at(100 + n * step_s, start + per_s * n * step_s) for n in range(count)]


def test_a_steady_rise_reaches_critical_when_its_line_does() -> None:
    assert seconds_to_critical(line(70, 2), 95) == pytest.approx(10.0)


@pytest.mark.parametrize(
    "samples",
    [
        pytest.param([], id="no samples"),
        pytest.param(line(70, 2, count=4), id="four samples"),
        pytest.param(line(70, 0), id="flat"),
        pytest.param(line(90, -1), id="falling"),
        pytest.param(line(70, 2, count=9, step_s=1.0), id="only four in the last three seconds"),
        pytest.param([at(100.0, 70 + n) for n in range(6)], id="all at one moment"),
    ],
)
def test_there_is_no_forecast_for(samples: list[Sample]) -> None:
    assert seconds_to_critical(samples, 95) is None


def test_five_samples_are_enough() -> None:
    assert seconds_to_critical(line(70, 2, count=5), 95) == pytest.approx(11.5)


def test_past_critical_and_rising_no_time_is_left() -> None:
    assert seconds_to_critical(line(95, 1), 95) == 0.0


def test_what_was_before_the_last_three_seconds_is_forgotten() -> None:
    old = [at(90 + n * 0.25, 10) for n in range(28)]
    assert seconds_to_critical([*old, *line(70, 2)], 95) == pytest.approx(10.0)


def test_only_the_binding_source_of_the_newest_sample_counts() -> None:
    samples = [
        Sample(
            one.time_s,
            (Reading("host", TOTAL, 6 * TOTAL // 10 - n * 10**6), *one.readings),
        )
        for n, one in enumerate(line(70, 2))
    ]
    samples = [Sample(s.time_s, (s.readings[0], Reading("limit", TOTAL, s.readings[1].used))) for s in samples]
    assert seconds_to_critical(samples, 95) == pytest.approx(10.0)


def test_samples_without_that_source_do_not_count() -> None:
    limits = [at(100 + n * 0.25, 70 + n, "limit") for n in range(4)]
    assert seconds_to_critical([*line(50, 0, count=4), *limits], 95) is None


def test_one_odd_reading_does_not_make_a_forecast_of_its_own() -> None:
    samples = line(40, 0, count=12, step_s=0.25)
    samples[5] = at(samples[5].time_s, 60)
    forecast = seconds_to_critical(samples, 95)
    assert forecast is None or forecast > 10


def test_a_history_keeps_three_seconds() -> None:
    history = History()
    assert history.seconds_to_critical(95) is None
    for sample in [*line(10, 0), *(at(200 + n * 0.25, 70 + n * 0.5) for n in range(11))]:
        history.add(sample)
    assert len(history._samples) == 11
    assert history.seconds_to_critical(95) == pytest.approx(10.0)


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 100)), max_size=30), st.floats(1, 100))
def test_a_forecast_is_none_or_not_in_the_past(points: list[tuple[float, float]], critical: float) -> None:
    forecast = seconds_to_critical([at(*point) for point in sorted(points)], critical)
    assert forecast is None or forecast >= 0
