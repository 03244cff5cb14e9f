"""How long a connection may take and how often a key may ask: the decisions, on a clock moved by hand."""

import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll import config
from plimsoll.http.access.gate import take
from plimsoll.http.limits.connection_timeouts import Observation, Phase, has_stopped_reading, overdue, wait_times_after
from plimsoll.http.os_settings import allow_open_files

LIMITS = config.parse({}).limits
KIB = 1024


def watched(*looks, every_s=1.0):
    """The watch after these looks, and the time of the last."""
    state, now_s = None, 0.0
    for seen in looks:
        now_s += every_s
        state = wait_times_after(state, seen, now_s)
    return state, now_s


@pytest.mark.parametrize(
    ("phase", "seconds", "key"),
    [
        (Phase.FRESH, 10, "header_time"),
        (Phase.HEADERS, 10, "header_time"),
        (Phase.BODY, 60, "body_time"),
        (Phase.DRAIN, 60, "body_time"),
        (Phase.IDLE, 120, "idle"),
    ],
)
def test_each_wait_has_its_own_limit_however_many_bytes_trickle_in(phase, seconds, key):
    assert overdue(*_with_limits(watched(*[Observation(phase)] * (seconds + 1)))) is None
    assert key in overdue(*_with_limits(watched(*[Observation(phase)] * (seconds + 2))))


def test_an_answer_may_take_as_long_as_it_takes():
    assert overdue(*_with_limits(watched(*[Observation(Phase.ANSWER)] * 100_000))) is None


def test_every_request_of_a_connection_has_its_own_time():
    looks = [Observation(Phase.BODY, served=number) for number in range(10) for _ in range(50)]
    assert overdue(*_with_limits(watched(*looks))) is None


@pytest.mark.parametrize("phase", [Phase.ANSWER, Phase.IDLE, Phase.BODY])
def test_who_reads_nothing_is_stuck_after_the_limit(phase):
    looks = [Observation(phase, paused=True, pauses=1, buffered=64 * KIB)]
    assert not _stuck(looks * 61)
    assert _stuck(looks * 62)


def test_who_reads_a_byte_now_and_then_is_stuck_all_the_same():
    assert _stuck([Observation(Phase.ANSWER, paused=True, pauses=1, buffered=64 * KIB - n) for n in range(62)])


def test_who_reads_slowly_but_steadily_is_not():
    looks = [Observation(Phase.ANSWER, paused=True, pauses=1, buffered=KIB * KIB - n * KIB) for n in range(1000)]
    assert not any(_stuck(looks[: n + 1]) for n in range(0, 1000, 7))


def test_who_catches_up_in_between_is_not():
    looks = [Observation(Phase.ANSWER, paused=True, pauses=n // 50, buffered=64 * KIB) for n in range(1000)]
    assert not _stuck(looks)
    assert not _stuck([Observation(Phase.ANSWER, buffered=10)] * 1000)


def test_too_much_that_waits_for_one_who_has_stopped_reading_is_not_kept_for_a_minute():
    fast = [Observation(Phase.ANSWER, paused=True, pauses=n, buffered=64 * KIB, waiting=1_000_000) for n in range(10)]
    assert not _stuck(fast)  # pauses between are a client that reads
    assert _stuck([*fast, fast[-1]])
    assert not _stuck([Observation(Phase.ANSWER, paused=True, pauses=1, buffered=64 * KIB, waiting=4096)] * 10)


def test_a_bucket_gives_the_burst_and_then_the_rate():
    bucket, waits = None, []
    for now_s in [0.0] * 4 + [0.5, 1.0, 1.0, 3600.0, 3600.0, 3600.0, 3600.0]:
        bucket, wait_s = take(bucket, now_s, per_minute=60, burst=3)
        waits.append(round(wait_s, 3))
    assert waits == [0, 0, 0, 1, 0.5, 0, 1, 0, 0, 0, 1]


@given(
    gaps=st.lists(st.floats(min_value=0, max_value=100), max_size=60),
    per_minute=st.floats(min_value=0.1, max_value=10_000),
    burst=st.integers(min_value=1, max_value=50),
)
def test_no_pattern_of_asking_gets_more_than_the_burst_and_the_rate(gaps, per_minute, burst):
    bucket, now_s, granted = None, 0.0, 0
    for gap_s in gaps:
        now_s += gap_s
        bucket, wait_s = take(bucket, now_s, per_minute=per_minute, burst=burst)
        granted += wait_s == 0
        if wait_s:
            _, again_s = take(bucket, now_s + wait_s * 1.0001, per_minute=per_minute, burst=burst)
            assert again_s == 0, "waiting as told was not enough"
    assert granted <= burst + now_s * per_minute / 60 + 1e-6


def test_a_clock_that_goes_back_gives_nothing():
    bucket, _ = take(None, 100.0, per_minute=60, burst=1)
    bucket, wait_s = take(bucket, 0.0, per_minute=60, burst=1)
    assert wait_s == 1


@pytest.mark.parametrize(
    ("soft", "hard", "connections", "raised", "said"),
    [
        (256, 10_000, 1000, 1256, False),
        (2000, 10_000, 1000, None, False),
        (256, resource.RLIM_INFINITY, 1000, 1256, False),
        (256, 1000, 1000, 1000, True),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 1000, None, False),
    ],
)
def test_as_many_files_may_be_open_as_connections_need(monkeypatch, caplog, soft, hard, connections, raised, said):  # noqa: PLR0917 - the table
    set_to = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: set_to.append(limits))
    allow_open_files(connections)
    assert set_to == ([] if raised is None else [(raised, hard)])
    assert ("ulimit -n 1256" in caplog.text) == said


def test_a_system_that_raises_no_limit_is_told_of(monkeypatch, caplog):
    def refused(*_):
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refused)
    allow_open_files(1000)
    assert "only 256 files may be open" in caplog.text


def _with_limits(pair):
    state, now_s = pair
    return state, LIMITS, now_s


def _stuck(looks):
    return has_stopped_reading(*_with_limits(watched(*looks)))
