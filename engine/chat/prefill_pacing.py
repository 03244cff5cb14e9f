"""Which prompts one step reads, and how many tokens of them, while other requests stream or wait. Pure functions.

A step makes one forward pass for all rows that decode and at most one pass over a chunk of prompts, and every stream
waits for both. Each step decides anew:

- Prompts are read in turns: the one with the fewest tokens left first, for that makes the sum of all waits for a first
  token smallest (shortest remaining processing time). The prompt that came first gets at least every fourth chunk, so
  that short ones never keep a long one from being read.
- Prompts that were not begun yet are read side by side, where all of them can begin their answers with this step.
- Nobody streams: a step reads ``idle`` tokens, enough for full speed, and few enough that new requests are soon seen.
- Answers stream: a step takes at most ``STEADY_STEPS`` times as long as one without a chunk. It may take up to
  ``BURST_S`` where prompts begin their answers with it and everybody's waits, per prompt that begins, get shorter.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

STEADY_STEPS = 4.0
"""A gap between two tokens of a stream while prompts are read, in steps that only decode."""
BURST_S = 0.5
"""What such a gap may grow to where prompts begin with the step."""
OLDEST_EVERY = 4
"""The prompt that came first is read at least in every so many steps that read."""

# A CPU's BLAS computes so many rows at a time, and other numbers up to twice as slowly. Less is not worth a pass over
# the weights and over the KV cache.
_TILE = 16
# Prompts of a fixed chunk that are read side by side while nobody streams.
_SIDE_BY_SIDE = 4
# Weight of the newest measurement of a step that only decodes.
_NEW = 0.3
# How much of its weight a measurement keeps with each newer one.
_KEPT = 0.8
# The weight of the assumption that a pass over no tokens takes as long as one that decodes.
_ASSUMED = 0.1
# One in so many chunks beside streams reads a tile more, which tells a chunk's own cost and that of its tokens apart.
_EXPLORE_EVERY = 8


@dataclass(frozen=True, slots=True)
class Prompt:
    """``rows`` that are read side by side, a single one where reading has not begun.

    ``left`` tokens are to be read before the answer begins, in the longest of them. Those of a prompt that is ``apart``
    (it was begun, or is scored) are read side by side with no other.
    """

    rows: tuple[int, ...]
    left: int
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Chunk:
    """At most ``tokens`` of each of ``rows`` are read in this step."""

    rows: tuple[int, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of a step: ``decode_s`` for the rows that decode, and ``chunk_s`` + tokens * ``token_s`` for a chunk.

    Tokens count with the padding of prompts that are read side by side.
    """

    decode_s: float
    chunk_s: float
    token_s: float

    def step_s(self, tokens: int) -> float:
        return self.decode_s + self.chunk_s + tokens * self.token_s

    def tokens_in(self, seconds: float) -> int:
        """The most tokens that a step of so many seconds reads, in whole tiles and at least one of them."""
        fits = int((seconds - self.decode_s - self.chunk_s) / self.token_s)
        return max(_TILE, fits // _TILE * _TILE)


def next_chunk(
    prompts: Sequence[Prompt], *, streaming: int, costs: Costs | None, room: int, most: int, oldest_turn: bool
) -> Chunk | None:
    """What the next step reads of ``prompts``, which are in the order in which they came; None where there are none.

    ``streaming`` answers wait for the step. At most ``room`` tokens are read in all, and ``most`` of one prompt.
    ``costs`` are None where nothing was measured or the configuration has a fixed chunk: then nothing else bounds the
    step. With ``oldest_turn`` the first prompt is read.
    """
    if not prompts:
        return None
    steady = min(room, costs.tokens_in(STEADY_STEPS * costs.decode_s)) if streaming and costs else room
    shortest = prompts[0] if oldest_turn else min(prompts, key=lambda prompt: prompt.left)
    each = steady // len(shortest.rows)
    if each < shortest.left <= each + _TILE // 2:
        each = shortest.left  # a pass of its own for the few that would be left costs more
    alone = Chunk(shortest.rows, max(1, min(most, each, shortest.left)))
    if shortest.apart or oldest_turn:
        return alone
    fresh = sorted((prompt for prompt in prompts if not prompt.apart), key=lambda prompt: prompt.left)
    together = list(_together(fresh, room, most))
    if not streaming or costs is None:
        return together[-1] if together else alone
    longest_s = max(BURST_S, STEADY_STEPS * costs.decode_s)
    best, least = alone, _waits(alone, shortest.left, len(prompts), streaming, costs)
    for chunk in together:
        if costs.step_s(len(chunk.rows) * chunk.tokens) > longest_s:
            break
        # Where it is equal the larger chunk: fewer steps are left for those that come later.
        if (waits := _waits(chunk, chunk.tokens, len(prompts), streaming, costs)) <= least:
            best, least = chunk, waits
    return best


def _together(fresh: list[Prompt], room: int, most: int) -> Iterator[Chunk]:
    """The shortest prompt, the two shortest and so on, as far as they fit in ``room`` with their padding."""
    for count, prompt in enumerate(fresh, 1):
        tokens = max(1, min(prompt.left, most))
        if count * tokens > room:
            return
        yield Chunk(tuple(row for one in fresh[:count] for row in one.rows), tokens)


def _waits(chunk: Chunk, left: int, waiting: int, streaming: int, costs: Costs) -> float:
    """Seconds that everybody waits in this step, per prompt that begins with it.

    Those who wait for a first token wait for all of the step, streams for what is beyond ``STEADY_STEPS``. A chunk that
    reads part of the ``left`` tokens of a prompt counts as that part of it.
    """
    step_s = costs.step_s(len(chunk.rows) * chunk.tokens)
    late_s = max(0.0, step_s - STEADY_STEPS * costs.decode_s)
    begins = len(chunk.rows) * min(1.0, chunk.tokens / max(1, left))
    return (waiting * step_s + streaming * late_s) / begins


class Pace:
    """Decides with what it has measured of the steps before.

    While answers stream and nothing was measured yet a step reads ``first`` tokens. Where twice or half as many answers
    stream as when a step without a chunk was last measured, one step reads nothing and is measured. With a ``fixed``
    number of the configuration a step reads so many tokens, and never more of one prompt.
    """

    def __init__(self, *, first: int, idle: int, fixed: int | None = None) -> None:
        self._first = first
        self._idle = idle if fixed is None else _SIDE_BY_SIDE * fixed
        self._fixed = fixed
        self._decode_s: float | None = None
        self._chunks = _Line()
        self._since_oldest = 0
        self._chunks_beside_streams = 0
        self._streaming = self._measured_streaming = 0

    @property
    def most(self) -> int:
        """More of one prompt is never read in one step."""
        return self._fixed or self._idle

    @property
    def most_padding(self) -> int:
        """What a short prompt is padded with at most; alone it is not padded."""
        return self._fixed or self._idle // 2

    @property
    def costs(self) -> Costs | None:
        """None until both a step that only decodes and one that reads were measured."""
        if self._decode_s is None or not self._chunks.measured:
            return None
        chunk_s, token_s = self._chunks.fitted(self._decode_s)
        return Costs(self._decode_s, chunk_s, token_s)

    def next_chunk(self, prompts: Sequence[Prompt], *, streaming: int) -> Chunk | None:
        """What the next step reads of ``prompts``, the oldest first, while ``streaming`` answers wait for it."""
        self._streaming = streaming
        if not self._fixed and streaming and prompts and not _is_like(streaming, self._measured_streaming):
            self._measured_streaming = streaming  # even if the clock stands still
            return None
        costs = None if self._fixed else self.costs
        room = self._idle if not streaming or costs else (self._fixed or self._first)
        oldest_turn = self._since_oldest >= OLDEST_EVERY - 1
        chunk = next_chunk(
            prompts, streaming=streaming, costs=costs, room=room, most=self.most, oldest_turn=oldest_turn
        )
        if chunk:
            is_oldest = not set(prompts[0].rows).isdisjoint(chunk.rows)
            self._since_oldest = 0 if is_oldest else self._since_oldest + 1
        if chunk and streaming and costs and costs.step_s(chunk.tokens) <= STEADY_STEPS * costs.decode_s:
            return self._explored(chunk, prompts)
        return chunk

    def _explored(self, chunk: Chunk, prompts: Sequence[Prompt]) -> Chunk:
        """Now and then a tile more of a prompt that is not read to its end.

        Not where one tile takes too long already, as behind a very long beginning: nothing larger would be chosen.
        """
        left = next(prompt.left for prompt in prompts if chunk.rows[0] in prompt.rows)
        self._chunks_beside_streams += 1
        if self._chunks_beside_streams % _EXPLORE_EVERY or chunk.tokens >= left or len(chunk.rows) > 1:
            return chunk
        return Chunk(chunk.rows, min(left, chunk.tokens + _TILE, self.most))

    def note(self, seconds: float, *, read: int, passes: int) -> None:
        """One step took ``seconds`` for so many passes over the weights, one of which read so many tokens if any."""
        if seconds <= 0 or not passes:
            return
        if not read:
            once = seconds / passes
            known = self._decode_s is not None and _is_like(self._streaming, self._measured_streaming)
            self._decode_s = (self._decode_s or 0.0) * (1 - _NEW) + once * _NEW if known else once
            self._measured_streaming = self._streaming
            return
        others_s = (passes - 1) * (self._decode_s or 0.0)
        # A step that was faster than its passes does not make reading free.
        self._chunks.add(read, max(seconds - others_s, 0.1 * seconds))


def _is_like(streaming: int, measured: int) -> bool:
    """Whether a step of ``streaming`` answers takes about as long as one of as many as were ``measured``."""
    return measured / 2 < streaming < 2 * measured or streaming == measured


class _Line:
    """Seconds of a chunk as a line over its tokens: weighted least squares, in which old measurements fade.

    Small chunks alone can't tell the line's two numbers apart. Then the pass itself is taken to cost what a pass that
    decodes costs: a line through that point that is weighed lightly.
    """

    def __init__(self) -> None:
        self._weight = self._tokens = self._seconds = self._squares = self._products = 0.0

    @property
    def measured(self) -> bool:
        return self._weight > 0

    def add(self, tokens: int, seconds: float) -> None:
        self._weight = _KEPT * self._weight + 1
        self._tokens = _KEPT * self._tokens + tokens
        self._seconds = _KEPT * self._seconds + seconds
        self._squares = _KEPT * self._squares + tokens * tokens
        self._products = _KEPT * self._products + tokens * seconds

    def fitted(self, pass_s: float) -> tuple[float, float]:
        """Seconds of a chunk without tokens, and of each token; ``pass_s`` is what a pass that decodes takes."""
        weight, seconds = self._weight + _ASSUMED, self._seconds + _ASSUMED * pass_s
        spread = weight * self._squares - self._tokens**2
        slope = (weight * self._products - self._tokens * seconds) / spread
        # Noise must not make tokens free, nor a chunk cheaper than nothing.
        slope = max(slope, 0.1 * self._seconds / self._tokens)
        return max(0.0, (seconds - slope * self._tokens) / weight), slope
