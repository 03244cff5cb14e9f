"""What counts as running out of memory: a crash without evidence costs one model and no other."""

import signal
from typing import Any

import pytest

from plimsoll.memory.death_evidence import Death, KillCounts, lacked_memory, oom_killed
from plimsoll.memory.memory_errors import ran_out
from plimsoll.memory.sample import Level, Reading, Sample
from plimsoll.memory.sources import RecentMemory

GIB = 1024**3


def at(*percents: float, source: str = "host", pressure: Level = Level.NORMAL) -> list[Sample]:
    """Samples half a second apart."""
    return [
        Sample(0.5 * index, (Reading(source, 1000, int(10 * percent)),), pressure)
        for index, percent in enumerate(percents)
    ]


@pytest.mark.parametrize(
    ("death", "samples", "lacked"),
    [
        # A crash at low use is a crash, by whatever signal.
        (Death(-signal.SIGSEGV), at(35.0), False),
        (Death(-signal.SIGABRT), at(35.0), False),
        (Death(-signal.SIGBUS), at(35.0), False),
        (Death(-signal.SIGKILL), at(35.0), False),
        (Death(-signal.SIGSEGV), at(89.9), False),
        # An allocation that failed while memory was nearly full.
        (Death(-signal.SIGSEGV), at(90.0), True),
        (Death(-signal.SIGABRT), at(97.0), True),
        (Death(-signal.SIGBUS), at(97.0), True),
        # By the last sample its memory is back already.
        (Death(-signal.SIGSEGV), at(80.0, 93.0, 40.0), True),
        # A user-space OOM killer.
        (Death(-signal.SIGKILL), at(95.0), True),
        (Death(-signal.SIGTERM), at(95.0), True),
        # Neither of these is ever a failed allocation.
        (Death(-signal.SIGILL), at(97.0), False),
        (Death(-signal.SIGFPE), at(97.0), False),
        (Death(1), at(97.0), False),
        (Death(0), at(97.0), False),
        # The kernel says so itself.
        (Death(-signal.SIGKILL, oom_killed=True), at(35.0), True),
        (Death(-signal.SIGKILL, oom_killed=True), [], True),
        # Its own footprint against its grant.
        (Death(-signal.SIGSEGV, held_bytes=3 * GIB, granted_bytes=2 * GIB), at(82.0), True),
        (Death(-signal.SIGSEGV, held_bytes=GIB, granted_bytes=2 * GIB), at(82.0), False),
        (Death(-signal.SIGSEGV, held_bytes=3 * GIB, granted_bytes=2 * GIB), at(35.0), False),
        (Death(-signal.SIGSEGV, held_bytes=3 * GIB), at(82.0), False),
        # macOS says by its pressure level what its percentages do not show.
        (Death(-signal.SIGKILL), at(60.0, pressure=Level.CRITICAL), True),
        (Death(-signal.SIGKILL), at(60.0, pressure=Level.WARNING), False),
        # Nothing was ever seen.
        (Death(-signal.SIGSEGV), [], False),
    ],
)
def test_lack_of_memory_needs_evidence(death: Death, samples: list[Sample], lacked: bool) -> None:
    assert lacked_memory(death, samples) is lacked


@pytest.mark.parametrize(
    ("before", "now", "samples", "killed"),
    [
        (KillCounts(3, 5), KillCounts(3, 5), at(99.0), False),
        (KillCounts(3, 5), KillCounts(4, 6), at(30.0), True),
        # Another container's process: its group counted it, ours did not.
        (KillCounts(3, 5), KillCounts(3, 6), at(99.0), False),
        # No group of its own: the host's count, if the host was full.
        (KillCounts(None, 5), KillCounts(None, 6), at(97.0), True),
        (KillCounts(None, 5), KillCounts(None, 6), at(35.0), False),
        (KillCounts(None, 5), KillCounts(None, 6), at(97.0, source="limit"), False),
        (KillCounts(None, 5), KillCounts(None, 5), at(97.0), False),
        (KillCounts(None, None), KillCounts(None, None), at(97.0), False),
        # A group that can be counted only now.
        (KillCounts(None, 5), KillCounts(3, 5), at(97.0), False),
    ],
)
def test_an_oom_kill_is_one_of_ours_or_none(
    before: KillCounts, now: KillCounts, samples: list[Sample], killed: bool
) -> None:
    assert oom_killed(before, now, samples) is killed


class Kernel:
    """Counts of OOM kills that a test sets, and samples of it."""

    def __init__(self, group: int | None = 7, host: int | None = 9) -> None:
        self.counts = KillCounts(group, host)
        self.recent = RecentMemory(lambda: self.counts)
        self.time_s, self.percent = 0.0, 35.0

    def sample(self, seconds: float = 0.5) -> None:
        self.time_s += seconds
        reading = Reading("host", 1000, int(10 * self.percent))
        self.recent.note_those_of(lambda _tracked: Sample(self.time_s, (reading,)))(())

    def kills(self, *, ours: bool) -> None:
        group, host = self.counts.group, self.counts.host
        self.counts = KillCounts(group if group is None else group + ours, host if host is None else host + 1)


def test_a_kill_of_long_ago_explains_no_later_death() -> None:
    kernel = Kernel()
    kernel.sample()
    kernel.kills(ours=True)
    for _ in range(8):
        kernel.sample()
    assert not kernel.recent.killed_one()


def test_a_kill_is_seen_though_samples_were_taken_between_it_and_the_end_of_the_process() -> None:
    kernel = Kernel()
    kernel.sample()
    kernel.kills(ours=True)
    kernel.sample(0.1)
    kernel.sample(0.1)
    assert kernel.recent.killed_one()


def test_one_kill_explains_one_death() -> None:
    kernel = Kernel()
    kernel.sample()
    kernel.kills(ours=True)
    assert kernel.recent.killed_one()
    assert not kernel.recent.killed_one()
    kernel.sample()
    assert not kernel.recent.killed_one()
    kernel.kills(ours=True)
    assert kernel.recent.killed_one()


def test_a_kill_in_another_group_explains_nothing() -> None:
    kernel = Kernel()
    kernel.sample()
    kernel.kills(ours=False)
    assert not kernel.recent.killed_one()


def test_without_a_group_a_kill_on_a_host_with_room_is_anothers() -> None:
    kernel = Kernel(group=None)
    kernel.sample()
    kernel.kills(ours=False)
    assert not kernel.recent.killed_one()
    kernel.percent = 97.0
    kernel.sample()
    kernel.kills(ours=False)
    assert kernel.recent.killed_one()


def test_before_the_first_sample_nothing_is_known() -> None:
    assert not Kernel().recent.killed_one()


def test_only_the_last_seconds_are_remembered() -> None:
    kernel = Kernel()
    for _ in range(20):
        kernel.sample()
    times = [sample.time_s for sample in kernel.recent.samples]
    assert times == [7.5, 8.0, 8.5, 9.0, 9.5, 10.0]


def test_the_error_of_such_a_death_has_the_figures_of_the_fullest_moment() -> None:
    error = ran_out("the worker died", at(91.0, 96.5, 40.0))
    told: dict[str, Any] = error.details
    assert (told["used_percent"], told["binding_source"]) == (96.5, "host")
    assert ran_out("the worker died", []).details == {}
