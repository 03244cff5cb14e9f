"""Levels on recorded timelines and a fake clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.memory.levels import LevelState, Thresholds, advance, next_interval_s
from plimsoll.memory.sample import Level, Reading, Sample

N, W, C, E = Level.NORMAL, Level.WARNING, Level.CRITICAL, Level.EMERGENCY
THRESHOLDS = Thresholds()


def at(percent: float, time_s: float = 0.0) -> Sample:
    return Sample(time_s, (Reading("host", 100_000, int(percent * 1000)),))


def levels(percents: list[float], step_s: float = 1.0) -> list[Level]:
    state, out = LevelState(), []
    for index, percent in enumerate(percents):
        state = advance(state, at(percent, index * step_s), THRESHOLDS)
        out.append(state.level)
    return out


@pytest.mark.parametrize(
    ("percents", "expected"),
    [
        pytest.param([84.9, 84.9, 84.9], [N, N, N], id="below warning nothing happens"),
        pytest.param([85, 85], [N, W], id="warning needs two samples in a row"),
        pytest.param([90, 40, 90, 40], [N, N, N, N], id="a single odd reading is ignored"),
        pytest.param([96, 96], [N, C], id="critical needs two samples in a row"),
        pytest.param([90, 96, 96], [N, W, C], id="the second sample confirms only what both say"),
        pytest.param([98], [E], id="emergency needs one"),
        pytest.param([90, 90, 99], [N, W, E], id="emergency from any level"),
        pytest.param([90, 90, 81, 84, 81], [N, W, W, W, W], id="within the hysteresis a level is kept"),
        pytest.param([96, 96, 91, 91], [N, C, C, C], id="critical is kept down to 90"),
    ],
)
def test_a_timeline_gives_these_levels(percents: list[float], expected: list[Level]) -> None:
    assert levels(percents) == expected


def test_a_level_is_left_after_ten_seconds_below_its_line() -> None:
    timeline = levels([90, 90, *[79] * 12])
    assert timeline[:12] == [N, *[W] * 11]
    assert timeline[12:] == [N, N]


def test_a_spike_starts_the_ten_seconds_again() -> None:
    assert levels([90, 90, *[79] * 8, 82, *[79] * 8])[-1] == W


def test_from_emergency_the_level_falls_to_where_use_is() -> None:
    assert levels([99, *[92] * 12])[-1] == C
    assert levels([99, *[83] * 12])[-1] == W
    assert levels([99, *[50] * 12])[-1] == N


@given(st.lists(st.floats(0, 100), max_size=60))
def test_a_level_never_outruns_its_samples(percents: list[float]) -> None:
    for index, level in enumerate(levels(percents)):
        if level > N:
            assert max(percents[: index + 1]) >= THRESHOLDS.of(level)


@given(st.floats(0, 100))
def test_the_next_look_comes_before_memory_could_be_full(percent: float) -> None:
    gib = 1024**3
    sample = Sample(0.0, (Reading("host", 16 * gib, int(16 * gib * percent / 100)),))
    assert 0.1 <= next_interval_s(sample, THRESHOLDS) <= 1.0


def test_close_to_critical_the_next_look_is_soon() -> None:
    gib = 1024**3
    sample = Sample(0.0, (Reading("host", 16 * gib, int(16 * gib * 0.94)),))
    assert next_interval_s(sample, THRESHOLDS) < 0.6


def test_the_source_with_the_least_room_sets_the_pace() -> None:
    gib = 1024**3
    machine, limit = Reading("host", 64 * gib, 40 * gib), Reading("limit", 2 * gib, 1 * gib)
    assert Sample(0.0, (machine, limit)).binding == machine
    assert next_interval_s(Sample(0.0, (machine,)), THRESHOLDS) == 1.0
    assert next_interval_s(Sample(0.0, (machine, limit)), THRESHOLDS) < 0.6


def test_the_fullest_source_binds() -> None:
    sample = Sample(0.0, (Reading("host", 100, 40), Reading("limit", 10, 9)))
    assert sample.binding.source == "limit"
    assert sample.used_percent == 90


def under_pressure(timeline: list[tuple[float, Level]]) -> list[Level]:
    state, out = LevelState(), []
    for index, (percent, pressure) in enumerate(timeline):
        sample = Sample(float(index), at(percent).readings, pressure, "vm_pressure")
        state = advance(state, sample, THRESHOLDS)
        out.append(state.level)
    return out


@pytest.mark.parametrize(
    ("timeline", "expected"),
    [
        pytest.param([(40, W), (40, W)], [N, W], id="pressure alone warns on two samples"),
        pytest.param([(40, C), (40, N), (40, C)], [N, N, N], id="a single sign of pressure is ignored"),
        pytest.param([(40, C), (40, W)], [N, W], id="the second sample confirms only what both say"),
        pytest.param([(90, N), (40, W)], [N, W], id="use and pressure confirm each other"),
        pytest.param([(96, W), (96, W)], [N, C], id="pressure never lowers what use says"),
        pytest.param([(40, E)] * 3, [N, C, C], id="pressure alone is never an emergency"),
        pytest.param([(98, W)], [E], id="an emergency by use needs one sample under pressure too"),
    ],
)
def test_pressure_raises_the_level(timeline: list[tuple[float, Level]], expected: list[Level]) -> None:
    assert under_pressure(timeline) == expected


def test_pressure_alone_holds_critical_while_it_lasts() -> None:
    assert under_pressure([(40, C)] * 60)[1:] == [C] * 59


def test_ten_seconds_after_the_pressure_the_level_falls() -> None:
    timeline = under_pressure([*[(40, C)] * 30, *[(40, N)] * 12])
    assert timeline[1:40] == [C] * 39
    assert timeline[40:] == [N, N]


def test_the_level_falls_to_what_pressure_still_asks_for() -> None:
    assert under_pressure([*[(40, C)] * 3, *[(40, W)] * 30])[-1] == W
    assert under_pressure([(99, C), *[(40, C)] * 30])[-1] == C


def test_new_pressure_starts_the_ten_seconds_again() -> None:
    assert under_pressure([*[(40, W)] * 3, *[(40, N)] * 8, (40, W), *[(40, N)] * 8])[-1] == W


def confirmed(percents: list[float]) -> list[Level]:
    state, out = LevelState(), []
    for index, percent in enumerate(percents):
        state = advance(state, at(percent, 0.1 * index), THRESHOLDS)
        out.append(state.confirmed)
    return out


def test_what_is_confirmed_has_no_hysteresis() -> None:
    assert confirmed([99, 40, 99, 40]) == [E, N, E, N]
    assert confirmed([96, 96, 94, 96, 96]) == [N, C, W, W, C]
    assert levels([96, 96, 94, 96, 96], 0.1) == [N, C, C, C, C]


@given(st.lists(st.floats(0, 100), max_size=60))
def test_the_level_is_never_below_what_is_confirmed(percents: list[float]) -> None:
    assert all(level >= sure for level, sure in zip(levels(percents), confirmed(percents), strict=True))
