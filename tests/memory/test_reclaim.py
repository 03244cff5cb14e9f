"""An unload is done when the memory is back, on a fake clock."""

import msgspec

from plimsoll.memory.ledger import Seat
from plimsoll.memory.reclaim import TIMEOUT_S, begin, judge
from plimsoll.memory.sample import Reading, Sample

GIB = 1024**3
SEAT = Seat("a", 10 * GIB, 10 * GIB)


def at(time_s: float, used: float, limit_used: float = 0) -> Sample:
    return Sample(
        time_s, (Reading("host", 100 * GIB, int(used * GIB)), Reading("limit", 100 * GIB, int(limit_used * GIB)))
    )


LEAVING = begin(SEAT, "idle", at(0, used=60), now=0.0)
GONE = msgspec.structs.replace(LEAVING, exited_at=1.0)


def test_nothing_is_verified_while_the_process_lives() -> None:
    assert judge(LEAVING, at(5, used=10), now=5.0) is None


def test_a_sample_from_before_the_exit_says_nothing() -> None:
    assert judge(GONE, at(0.9, used=50), now=1.0) is None


def test_half_of_the_expected_bytes_verify_it() -> None:
    outcome = judge(GONE, at(1.1, used=55), now=1.1)
    assert outcome is not None
    assert outcome.verified
    assert outcome.freed_bytes == 5 * GIB
    assert outcome.milliseconds == 1100


def test_less_is_waited_for_and_then_said_plainly() -> None:
    assert judge(GONE, at(1.1, used=58), now=1.1) is None
    outcome = judge(GONE, at(1.2 + TIMEOUT_S, used=58), now=1.2 + TIMEOUT_S)
    assert outcome is not None
    assert not outcome.verified
    assert outcome.freed_bytes == 2 * GIB


def test_it_is_measured_by_the_source_that_was_binding_then() -> None:
    assert judge(GONE, at(1.1, used=50, limit_used=99), now=1.1) is not None


def test_growth_elsewhere_does_not_hide_for_ever_that_the_process_is_gone() -> None:
    outcome = judge(GONE, at(2 + TIMEOUT_S, used=70), now=2 + TIMEOUT_S)
    assert outcome is not None
    assert outcome.freed_bytes == -10 * GIB


def sample_of(time_s: float, used: float, **footprints: float) -> Sample:
    held = {int(pid[1:]): int(size * GIB) for pid, size in footprints.items()}
    return Sample(time_s, (Reading("host", 100 * GIB, int(used * GIB)),), footprints=held)


def test_what_our_other_processes_took_meanwhile_was_given_back_first() -> None:
    pending = begin(SEAT, "idle", sample_of(0, 60, p1=10, p2=5, p3=8), now=0.0)
    gone = msgspec.structs.replace(pending, exited_at=1.0)
    # 2 has grown by 6, 4 has begun with 3, and 3 has given back 2 that are not the departed one's.
    outcome = judge(gone, sample_of(1.1, 57, p2=11, p3=6, p4=3), now=1.1)
    assert outcome is not None
    assert outcome.verified
    assert outcome.freed_bytes == 12 * GIB


def test_growth_of_ours_proves_nothing_where_nothing_came_back() -> None:
    pending = begin(SEAT, "idle", sample_of(0, 60, p1=10, p2=5), now=0.0)
    gone = msgspec.structs.replace(pending, exited_at=1.0)
    assert judge(gone, sample_of(1.1, 69, p2=14), now=1.1) is None
