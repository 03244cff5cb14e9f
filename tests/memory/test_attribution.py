"""Whose memory it is."""

import pytest

from plimsoll.memory.memory_errors import external
from plimsoll.memory.sample import Level, Reading, Sample


def use(percent: int, ours: list[int], source: str = "host", pressure: Level = Level.NORMAL) -> Sample:
    footprints = dict(enumerate(ours))
    return Sample(0.0, (Reading(source, 100, percent),), pressure=pressure, footprints=footprints)


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        pytest.param(use(96, [1, 10]), False, id="without us it would be 85"),
        pytest.param(use(96, [1]), True, id="without us it would be exactly at the level"),
        pytest.param(use(96, [1, 1]), False, id="without us it would be just below"),
        pytest.param(use(99, []), True, id="nothing is ours"),
        pytest.param(use(97, [1], "cgroup"), True, id="others in our control group"),
        pytest.param(use(99, [], "limit"), False, id="our own limit counts us alone"),
        pytest.param(use(99, [], "accelerator"), False, id="the accelerator counts our workers alone"),
        pytest.param(use(40, [], pressure=Level.CRITICAL), False, id="use itself is below the level"),
    ],
)
def test_pressure_is_external_when_we_could_not_end_it(sample: Sample, expected: bool) -> None:
    assert external(sample, 95) is expected
