"""When memory will be critical if use goes on rising as it does."""

import statistics
from collections import deque
from collections.abc import Sequence

from plimsoll.memory.sample import Sample

WINDOW_S = 3.0
_FEWEST = 5


def seconds_to_critical(samples: Sequence[Sample], critical_percent: float) -> float | None:
    """Seconds until the newest sample's binding source reaches ``critical_percent``; 0.0 when it has.

    ``(critical - used) / slope``, with the slope of a least-squares line through that source's readings in the
    last 3 s. None when use is flat or falling, or for fewer than 5 readings. ``samples`` are in order of time.
    """
    if not samples:
        return None
    newest = samples[-1]
    source = newest.binding.source
    points = [
        (sample.time_s - newest.time_s, reading.percent)
        for sample in samples
        if newest.time_s - sample.time_s <= WINDOW_S
        for reading in sample.readings
        if reading.source == source
    ]
    if len(points) < _FEWEST:
        return None
    try:
        slope = statistics.linear_regression(*zip(*points, strict=True)).slope
    except statistics.StatisticsError:  # all at one moment
        return None
    if slope <= 0:
        return None
    return max(0.0, critical_percent - newest.used_percent) / slope


class History:
    """The samples that a forecast looks at; older ones are dropped."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque()

    def add(self, sample: Sample) -> None:
        self._samples.append(sample)
        while sample.time_s - self._samples[0].time_s > WINDOW_S:
            self._samples.popleft()

    def seconds_to_critical(self, critical_percent: float) -> float | None:
        """As the function of this name, over the last 3 s."""
        return seconds_to_critical(self._samples, critical_percent)
