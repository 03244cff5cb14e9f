"""What each step reads: single decisions, and whole timelines of arrivals played against a cost of steps that is set
by hand after decode rates that were measured."""

import statistics
from dataclasses import dataclass, field

import pytest

from plimsoll.engine.chat.prefill_pacing import (
    BURST_S,
    OLDEST_EVERY,
    STEADY_STEPS,
    Chunk,
    Costs,
    Pace,
    Prompt,
    next_chunk,
)

COSTS = Costs(decode_s=0.1, chunk_s=0.1, token_s=0.001)


def paced(**options):
    return Pace(first=16, idle=256, **options)


def learnt(pace, costs=COSTS):
    """The pace after steps that cost exactly this."""
    for tokens in (16, 160, 64):
        pace.next_chunk([], streaming=4)
        pace.note(costs.decode_s, read=0, passes=1)
        pace.note(costs.step_s(tokens), read=tokens, passes=2)
    return pace


def fresh(*lengths):
    return [Prompt((row,), left) for row, left in enumerate(lengths)]


def chosen(prompts, *, streaming=0, costs=COSTS, room=256, most=256, oldest_turn=False):
    return next_chunk(prompts, streaming=streaming, costs=costs, room=room, most=most, oldest_turn=oldest_turn)


def test_nothing_to_read():
    assert chosen([]) is None


def test_nobody_streams_so_as_much_as_is_efficient_is_read():
    assert chosen(fresh(9000)) == Chunk((0,), 256)
    assert paced().next_chunk(fresh(9000), streaming=0) == Chunk((0,), 256)


def test_the_first_reading_beside_a_stream_is_small():
    pace = paced()
    assert pace.next_chunk(fresh(9000), streaming=1) is None
    assert pace.next_chunk(fresh(9000), streaming=1) == Chunk((0,), 16)


def test_a_step_without_a_chunk_is_measured_anew_when_many_more_or_many_fewer_stream():
    pace = learnt(paced())
    read = []
    for streaming in (4, 4, 5, 7, 8, 8, 15, 6, 4, 4, 3, 2, 2):
        chunk = pace.next_chunk(fresh(9000), streaming=streaming)
        read.append(chunk is not None)
        pace.note(0.1 + 0.1 * bool(chunk), read=chunk.tokens if chunk else 0, passes=1 + bool(chunk))
    assert read == [True, True, True, True, False, True, True, True, False, True, True, False, True]


def test_the_shortest_are_read_first_and_side_by_side_as_far_as_they_fit_with_their_padding():
    assert chosen(fresh(9000, 60, 20, 80)) == Chunk((2, 1, 3), 80)
    assert chosen(fresh(9000, 60, 20, 90)) == Chunk((2, 1), 60)
    assert chosen(fresh(300, 260)) == Chunk((1,), 256)


def test_a_prompt_that_was_begun_is_read_alone_with_those_it_began_with():
    begun = Prompt((3, 4), 60, apart=True)
    assert chosen([begun, *fresh(80)]) == Chunk((3, 4), 60)
    assert chosen([Prompt((3, 4), 600, apart=True)]) == Chunk((3, 4), 128)


def test_a_long_prompt_takes_no_more_of_a_step_than_four_times_its_usual_length():
    chunk = chosen(fresh(9000), streaming=4, room=4096, most=4096)
    assert COSTS.step_s(chunk.tokens) == pytest.approx(STEADY_STEPS * COSTS.decode_s, rel=0.05)


def test_short_prompts_of_a_burst_may_take_half_a_second():
    quick = Costs(decode_s=0.02, chunk_s=0.02, token_s=0.001)
    steady = chosen(fresh(9000), streaming=2, costs=quick, room=4096, most=4096)
    burst = chosen(fresh(*[50] * 14), streaming=2, costs=quick, room=4096, most=4096)
    assert quick.step_s(steady.tokens) <= STEADY_STEPS * 0.02
    assert len(burst.rows) == 9
    assert STEADY_STEPS * 0.02 < quick.step_s(len(burst.rows) * burst.tokens) <= BURST_S


def test_many_streams_do_not_wait_long_for_one_short_prompt():
    quick = Costs(decode_s=0.02, chunk_s=0.002, token_s=0.001)
    chunk = chosen(fresh(200), streaming=8, costs=quick, room=4096, most=4096)
    assert quick.step_s(chunk.tokens) <= STEADY_STEPS * 0.02


@pytest.mark.parametrize("token_s", [0.0001, 0.0007, 0.002, 1.0])
def test_part_of_a_prompt_comes_in_whole_tiles_and_at_least_one(token_s):
    chunk = chosen(fresh(9000), streaming=1, costs=Costs(0.1, 0.1, token_s), room=4096, most=4096)
    assert chunk.tokens >= 16
    assert chunk.tokens % 16 == 0


def test_the_oldest_prompt_gets_every_fourth_chunk_however_many_short_ones_come():
    pace, begun, reads = learnt(paced()), False, []
    for number in range(12):
        prompts = [Prompt((0,), 20_000, apart=begun), Prompt((100 + number,), 30)]
        reads.append(pace.next_chunk(prompts, streaming=0).rows[0])
        begun = True
    assert [row == 0 for row in reads] == 3 * [*[False] * (OLDEST_EVERY - 1), True]


def test_the_line_of_costs_is_found_whatever_a_chunk_costs():
    for costs in (COSTS, Costs(0.05, 0.2, 0.001), Costs(0.02, 0.005, 0.0001)):
        pace = learnt(paced(), costs)
        assert pace.costs.decode_s == pytest.approx(costs.decode_s)
        assert pace.costs.step_s(160) == pytest.approx(costs.step_s(160), rel=0.15)


def test_small_chunks_do_not_keep_chunks_small():
    """Measured on few tokens alone, what every chunk costs looks as if the tokens cost it."""
    pace, dear = paced(), Costs(decode_s=0.1, chunk_s=0.2, token_s=0.0005)
    pace.next_chunk([], streaming=4)
    pace.note(dear.decode_s, read=0, passes=1)
    for _ in range(8):
        pace.note(dear.step_s(16), read=16, passes=2)
    for _ in range(40):
        chunk = pace.next_chunk([Prompt((0,), 9000, apart=True)], streaming=4)
        pace.note(dear.step_s(chunk.tokens), read=chunk.tokens, passes=2)
    assert chunk.tokens >= 128


def test_reading_slows_down_as_the_prompt_grows_long():
    pace = learnt(paced())
    before = pace.next_chunk(fresh(9000), streaming=4).tokens
    for _ in range(20):
        pace.note(0.2 + 64 * 0.004, read=64, passes=2)
    assert pace.next_chunk(fresh(9000), streaming=4).tokens < before / 2


def test_a_little_is_read_however_slow_it_is():
    pace = paced()
    pace.next_chunk([], streaming=1)
    pace.note(0.05, read=0, passes=1)
    pace.note(10.0, read=16, passes=2)
    assert pace.next_chunk(fresh(9000), streaming=1).tokens == 16


def test_nothing_larger_is_tried_where_the_least_chunk_takes_too_long_already():
    """Behind 20,000 tokens sixteen more took ten steps of the streams beside them, every eighth chunk twice that."""
    dear = Costs(decode_s=0.008, chunk_s=0.0, token_s=0.005)
    pace = learnt(paced(), dear)
    read = []
    for _ in range(40):
        chunk = pace.next_chunk([Prompt((0,), 9000, apart=True)], streaming=4)
        pace.note(dear.step_s(chunk.tokens), read=chunk.tokens, passes=2)
        read.append(chunk.tokens)
    assert set(read[8:]) == {16}


def test_a_step_that_was_faster_than_its_passes_does_not_make_reading_free():
    pace = paced()
    pace.next_chunk([], streaming=1)
    pace.note(0.05, read=0, passes=1)
    pace.note(0.04, read=16, passes=2)
    assert pace.costs.token_s > 0
    assert 16 <= pace.next_chunk(fresh(9000), streaming=1).tokens <= 256


def test_a_clock_that_stands_still_teaches_nothing():
    pace = paced()
    assert pace.next_chunk(fresh(9000), streaming=1) is None
    pace.note(0.0, read=0, passes=1)
    pace.note(0.0, read=16, passes=2)
    assert pace.costs is None
    assert pace.next_chunk(fresh(9000), streaming=1).tokens == 16


def test_a_fixed_chunk_is_kept_whatever_is_measured():
    pace = learnt(paced(fixed=64))
    assert pace.next_chunk(fresh(9000), streaming=1) == Chunk((0,), 64)
    assert pace.next_chunk(fresh(9000), streaming=0) == Chunk((0,), 64)
    assert pace.next_chunk(fresh(100, 100, 100, 100, 100), streaming=0) == Chunk((0, 1, 2, 3), 64)
    assert pace.most == pace.most_padding == 64


# ---- timelines


@dataclass
class Machine:
    """Seconds of a step: ``decode_s`` by how many rows decode (up to 16), a chunk, and each of its tokens."""

    decode_s: dict[int, float]
    chunk_s: float
    token_s: float

    def step_s(self, rows, tokens):
        decode = min((size for size in self.decode_s if size >= rows), default=max(self.decode_s)) if rows else None
        return (self.decode_s[decode] if decode else 0.0) + (self.chunk_s + tokens * self.token_s if tokens else 0.0)


# SmolLM2-135M in float32 on two cores with OpenBLAS: decode by rows, and what prompts of 50 and 160 tokens took.
TWO_CORES = Machine({1: 0.083, 2: 0.091, 4: 0.114, 8: 0.12, 16: 0.17}, chunk_s=0.06, token_s=0.0012)
FAST_GPU = Machine({1: 0.018, 2: 0.019, 4: 0.02, 8: 0.022, 16: 0.026}, chunk_s=0.02, token_s=0.0004)


@dataclass
class Played:
    first_s: dict[int, float] = field(default_factory=dict)
    gaps_s: list[float] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)


class Player:
    """The engine's step beside endless ``streams``, with the costs of ``machine`` in the place of passes."""

    def __init__(self, machine, pace, streams, answer):
        self.machine, self.pace, self.streams, self.answer = machine, pace, streams, answer
        self.now, self.played, self.left, self.tokens = 0.0, Played(), {}, {}
        self.begun = set()

    @property
    def streaming(self):
        return self.streams + len(self.tokens)

    def step(self):
        prompts = [Prompt((row,), self.left[row], row in self.begun) for row in sorted(self.left)]
        chunk, before = self.pace.next_chunk(prompts, streaming=self.streaming), self.streaming
        read = self.read(chunk) if chunk else 0
        took = self.machine.step_s(self.streaming, read)
        self.now += took
        self.pace.note(took, read=read, passes=(read > 0) + (self.streaming > 0))
        self.played.gaps_s += [took] * before
        self.tokens = {row: count + 1 for row, count in self.tokens.items() if count + 1 < self.answer}

    def read(self, chunk):
        self.played.chunks.append(chunk)
        read = len(chunk.rows) * min(chunk.tokens, max(self.left[row] for row in chunk.rows))
        for row in chunk.rows:
            self.left[row] -= min(chunk.tokens, self.left[row])
            self.begun.add(row)
            if not self.left[row]:
                del self.left[row]
                self.tokens[row] = 0
        return read


def play(machine, arrivals, pace, *, streams=0, answer=48):
    """Requests as (second, prompt tokens); at most 16 rows are read or decode at a time."""
    player = Player(machine, pace, streams, answer)
    waiting = sorted(enumerate(arrivals), key=lambda one: one[1])
    first_s = player.played.first_s
    if streams:
        player.step()
    while waiting or player.left or player.tokens:
        if not (player.left or player.tokens or streams):
            player.now = max(player.now, waiting[0][1][0])
        while waiting and waiting[0][1][0] <= player.now and len(player.left) + player.streaming < 16:
            row, (_, length) = waiting.pop(0)
            player.left[row] = length - 1
        reading = set(player.left)
        player.step()
        for row in reading - player.left.keys():
            first_s[row] = player.now - arrivals[row][0]
    return player.played


def cpu_pace():
    return Pace(first=16, idle=160)


def test_a_burst_of_sixteen_short_prompts_is_not_read_one_by_one():
    played = play(TWO_CORES, [(0.0, 50)] * 16, cpu_pace())
    assert len(played.chunks) <= 8
    first = sorted(played.first_s.values())
    reading_all_first = 6 * TWO_CORES.chunk_s + 16 * 50 * TWO_CORES.token_s + TWO_CORES.step_s(16, 0)
    assert first[-1] < 2.5 * reading_all_first
    assert statistics.median(first) < 1.1 * reading_all_first
    assert max(played.gaps_s) < 0.75


@pytest.mark.parametrize("count", [1, 2, 4, 8, 12, 16, 24, 64])
@pytest.mark.parametrize("machine", [TWO_CORES, FAST_GPU])
@pytest.mark.parametrize("spread_s", [0.0, 1.0])
def test_short_and_long_prompts_at_once_or_over_a_second(machine, count, spread_s):
    pace = cpu_pace() if machine is TWO_CORES else Pace(first=128, idle=1024)
    arrivals = [(spread_s * number / count, 800 if number % 4 == 3 else 50) for number in range(count)]
    played = play(machine, arrivals, pace)
    assert len(played.first_s) == count
    long = [played.first_s[row] for row, (_, length) in enumerate(arrivals) if length > 50]
    short = [played.first_s[row] for row, (_, length) in enumerate(arrivals) if length == 50]
    assert not long or statistics.mean(short) < statistics.mean(long)
    most_s = max(BURST_S, STEADY_STEPS * machine.step_s(16, 0))
    assert max(played.gaps_s, default=0) <= 1.1 * most_s


def test_a_short_prompt_waits_for_one_chunk_of_a_long_one_at_most():
    played = play(TWO_CORES, [(0.0, 20_000), (5.0, 50)], cpu_pace())
    alone = play(TWO_CORES, [(0.0, 50)], cpu_pace()).first_s[0]
    chunk_s = TWO_CORES.step_s(0, 160)
    assert played.first_s[1] <= 2 * alone + chunk_s


def test_a_long_prompt_is_read_nearly_as_fast_beside_one_short_request():
    alone = play(TWO_CORES, [(0.0, 20_000)], cpu_pace()).first_s[0]
    assert play(TWO_CORES, [(0.0, 20_000), (5.0, 50)], cpu_pace()).first_s[0] <= 1.3 * alone


def test_streams_keep_their_pace_beside_a_long_prompt():
    played = play(TWO_CORES, [(0.0, 4000)], cpu_pace(), streams=4)
    assert max(played.gaps_s) <= 1.05 * STEADY_STEPS * TWO_CORES.step_s(4, 0)
    alone = play(TWO_CORES, [(0.0, 4000)], cpu_pace()).first_s[0]
    assert played.first_s[0] <= 2 * alone


def test_a_long_prompt_is_read_under_a_flood_of_short_ones():
    flood = [(0.4 * number, 50) for number in range(100)]
    played = play(TWO_CORES, [(0.0, 3000), *flood], cpu_pace(), answer=4)
    alone = play(TWO_CORES, [(0.0, 3000)], cpu_pace()).first_s[0]
    assert played.first_s[0] <= 2 * OLDEST_EVERY * alone
