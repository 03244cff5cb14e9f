"""The sampling thread: what makes it look before its time."""

import queue
from collections.abc import Iterator, Sequence

import pytest

from plimsoll.actors import messages as m
from plimsoll.actors import watchdog as room
from plimsoll.actors.watchdog import Watchdog
from plimsoll.journal.journal import Journal
from plimsoll.memory.levels import Thresholds
from plimsoll.memory.sample import Reading, Sample, Tracked

_DEADLINE_S = 60.0


class Looks:
    """A sampler that tells of every look."""

    def __init__(self) -> None:
        self.pids: queue.Queue[set[int]] = queue.Queue()

    def __call__(self, tracked: Sequence[Tracked]) -> Sample:
        self.pids.put({one.pid for one in tracked})
        return Sample(0.0, (Reading("fake", 100, 10),))

    def next(self) -> set[int]:
        return self.pids.get(timeout=_DEADLINE_S)


@pytest.fixture
def looks() -> Looks:
    return Looks()


@pytest.fixture
def watchdog(looks: Looks, monkeypatch: pytest.MonkeyPatch) -> Iterator[m.Ref]:
    """It has looked once and would not look again by itself before the test is over."""
    monkeypatch.setattr(room, "next_interval_s", lambda _sample, _thresholds: 10 * _DEADLINE_S)
    ref = Watchdog.start(looks, Thresholds(), Journal())
    assert looks.next() == set()
    yield ref
    ref.stop()


def test_it_looks_at_once_when_a_worker_has_ended(watchdog: m.Ref, looks: Looks) -> None:
    both = (Tracked(1), Tracked(2))
    watchdog.tell(m.Track(both, hurry=False))
    watchdog.tell(m.Track(both[:1], hurry=False))
    assert looks.next() == {1}


def test_a_worker_that_has_begun_is_no_reason_to_hurry(watchdog: m.Ref, looks: Looks) -> None:
    watchdog.tell(m.Track((Tracked(1),), hurry=False))
    watchdog.tell(m.Track((Tracked(1), Tracked(2)), hurry=False))
    watchdog.ask(m.Track((Tracked(1, mlx_bytes=5), Tracked(2)), hurry=False), timeout=_DEADLINE_S)
    assert looks.pids.empty()
