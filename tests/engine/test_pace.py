import pytest

from plimsoll.engine.pace import STRETCH, Pace


def paced(**options):
    return Pace(first=16, idle=256, **options)


def test_nobody_streams_so_as_much_as_is_efficient_is_read():
    assert paced().room(streaming=False) == 256


def test_the_first_reading_beside_a_stream_is_small():
    assert paced().room(streaming=True) == 16


@pytest.mark.parametrize(("decode_s", "token_s"), [(0.06, 0.007), (0.02, 0.001), (0.1, 0.002)])
def test_a_step_that_reads_takes_the_stretch_of_one_that_does_not(decode_s, token_s):
    pace = paced()
    for _ in range(30):
        pace.note(decode_s, read=0, decoded=1)
        room = pace.room(streaming=True)
        pace.note(decode_s + room * token_s, read=room, decoded=1)
    assert pace.room(streaming=True) * token_s == pytest.approx((STRETCH - 1) * decode_s, rel=0.2)


def test_reading_slows_down_as_the_prompt_grows_long():
    pace = paced()
    pace.note(0.06, read=0, decoded=1)
    pace.note(0.06 + 16 * 0.005, read=16, decoded=1)
    before = pace.room(streaming=True)
    for _ in range(20):
        pace.note(0.06 + 16 * 0.010, read=16, decoded=1)
    assert pace.room(streaming=True) == pytest.approx(before / 2, rel=0.2)


def test_what_was_learnt_while_nobody_streamed_counts():
    pace = paced()
    pace.note(1.0, read=200, decoded=0)
    pace.note(0.05, read=0, decoded=3)
    assert pace.room(streaming=True) == int((STRETCH - 1) * 0.05 / (1.0 / 200))


def test_a_little_is_read_however_slow_it_is():
    pace = paced()
    pace.note(0.05, read=0, decoded=1)
    pace.note(10.0, read=16, decoded=1)
    assert pace.room(streaming=True) == 8


def test_a_step_that_was_faster_than_decoding_alone_does_not_make_reading_free():
    pace = paced()
    pace.note(0.05, read=0, decoded=1)
    pace.note(0.04, read=16, decoded=1)
    assert 8 <= pace.room(streaming=True) <= 256


def test_a_fixed_chunk_is_kept_whatever_is_measured():
    pace = paced(fixed=64)
    pace.note(0.05, read=0, decoded=1)
    pace.note(1.0, read=64, decoded=1)
    assert pace.room(streaming=True) == 64
    assert pace.room(streaming=False) == 256
    assert pace.per_row(1, streaming=False) == pace.most == pace.most_padding == 64


def test_several_prompts_share_the_room():
    pace = paced()
    assert pace.per_row(4, streaming=False) == 64
    assert pace.per_row(1, streaming=False) == 256
    assert pace.per_row(0, streaming=False) == 256
    assert pace.per_row(100, streaming=True) == 1
