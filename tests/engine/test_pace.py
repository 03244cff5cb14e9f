import pytest

from plimsoll.engine.pace import STRETCH, Pace


def paced(**options):
    return Pace(first=16, idle=256, **options)


def test_nobody_streams_so_as_much_as_is_efficient_is_read():
    assert paced().room(streaming=0) == 256


def test_the_first_reading_beside_a_stream_is_small():
    assert paced().room(streaming=1) == 16


@pytest.mark.parametrize(("pass_s", "token_s"), [(0.05, 0.001), (0.02, 0.0004), (0.1, 0.002)])
def test_a_step_that_reads_takes_the_stretch_of_one_that_does_not(pass_s, token_s):
    pace = paced()
    for _ in range(30):
        pace.note(pass_s, read=0, passes=1)
        room = pace.room(streaming=1)
        pace.note(2 * pass_s + room * token_s, read=room, passes=2)
    took_s = 2 * pass_s + pace.room(streaming=1) * token_s
    assert took_s == pytest.approx(STRETCH * pass_s, rel=0.1)


def test_reading_slows_down_as_the_prompt_grows_long():
    pace = paced()
    pace.note(0.1, read=0, passes=1)
    pace.note(0.2 + 64 * 0.001, read=64, passes=2)
    before = pace.room(streaming=1)
    for _ in range(20):
        pace.note(0.2 + 64 * 0.002, read=64, passes=2)
    assert pace.room(streaming=1) == pytest.approx(before / 2, rel=0.2)


def test_the_more_requests_wait_than_stream_the_more_is_read():
    pace = paced()
    pace.note(0.05, read=0, passes=1)
    pace.note(0.1 + 16 * 0.0008, read=16, passes=2)
    rooms = [pace.room(streaming=2, waiting=waiting) for waiting in (1, 2, 3, 4, 9, 100)]
    assert rooms == sorted(rooms)
    assert rooms[0] == rooms[1] < rooms[2] < rooms[3]
    assert rooms[4] == rooms[5]


@pytest.mark.parametrize("waiting", [1, 2, 3, 4])
def test_what_is_read_comes_in_whole_tiles(waiting):
    pace = paced()
    pace.note(0.05, read=0, passes=1)
    pace.note(0.1 + 16 * 0.00071, read=16, passes=2)
    assert pace.room(streaming=1, waiting=waiting) % 16 == 0


def test_what_was_learnt_while_nobody_streamed_counts():
    pace = paced()
    pace.note(0.2, read=200, passes=1)
    pace.note(0.05, read=0, passes=1)
    assert pace.room(streaming=1) == 16 * int((STRETCH - 2) * 0.05 / (0.2 / 200) / 16) == 32


def test_a_little_is_read_however_slow_it_is():
    pace = paced()
    pace.note(0.05, read=0, passes=1)
    pace.note(10.0, read=16, passes=2)
    assert pace.room(streaming=1) == 16


def test_a_step_that_was_faster_than_its_passes_does_not_make_reading_free():
    pace = paced()
    pace.note(0.05, read=0, passes=1)
    pace.note(0.04, read=16, passes=2)
    assert 16 <= pace.room(streaming=1) <= 256


def test_a_clock_that_stands_still_teaches_nothing():
    pace = paced()
    pace.note(0.0, read=0, passes=1)
    pace.note(0.0, read=16, passes=2)
    assert pace.room(streaming=1) == 16


def test_a_fixed_chunk_is_kept_whatever_is_measured():
    pace = paced(fixed=64)
    pace.note(0.05, read=0, passes=1)
    pace.note(1.0, read=64, passes=2)
    assert pace.room(streaming=1) == 64
    assert pace.room(streaming=0) == 256
    assert pace.per_row(1, 256) == pace.most == pace.most_padding == 64


def test_several_prompts_share_the_room():
    pace = paced()
    assert pace.per_row(4, 256) == 64
    assert pace.per_row(1, 256) == 256
    assert pace.per_row(0, 256) == 256
    assert pace.per_row(100, 16) == 1
