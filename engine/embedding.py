"""The engine of embedding models: texts in, one vector each out. Runs in a worker process only."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from plimsoll.engine.allocator import give_back
from plimsoll.engine.encoders import Encoder, open_encoder
from plimsoll.engine.engine import Progress
from plimsoll.engine.long_text import beginning
from plimsoll.engine.protocol import (
    MAX_INPUTS,
    ChatRequest,
    Embedded,
    EngineOptions,
    Event,
    ModelInfo,
    PrefillProgress,
    Request,
    RequestError,
    Step,
    Usage,
)
from plimsoll.errors import BadRequest, ContextTooLong, InternalError

_SPARE_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Prepared:
    rows: list[list[int]]
    dimensions: int
    cut: bool


@dataclass(slots=True, eq=False)
class _Job:
    """A request; ``left`` texts have no vector yet."""

    id: str
    prepared: Prepared
    vectors: list[bytes]
    left: int
    tokens_done: int = 0

    @property
    def tokens(self) -> int:
        return sum(map(len, self.prepared.rows))


_Place = tuple[_Job, int]


@dataclass(slots=True)
class _Batch:
    places: list[_Place]
    reading: Iterator[mx.array | None] = field(repr=False)


class EmbeddingEngine:
    """One embedding model; see ``plimsoll.engine.engine.Engine``.

    Texts of all requests share batches of like length. A step reads a bounded number of tokens. Usage counts the
    special tokens that the model wants around a text, but no padding.
    """

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._encoder: Encoder | None = None
        self._waiting: deque[_Place] = deque()
        self._batch: _Batch | None = None
        self._jobs: dict[str, _Job] = {}
        self._cancelled: list[tuple[str, str, Usage]] = []
        self._refused: list[RequestError] = []

    def load(self, path: Path, progress: Progress) -> ModelInfo:
        self._encoder = open_encoder(path, self._options, progress)
        return self._encoder.info

    def prepare(self, request: Request) -> Prepared:
        encoder = self._need_encoder()
        if isinstance(request, ChatRequest):
            raise BadRequest("This model makes embeddings and can't chat: use a chat model.", param="model")
        inputs = request.texts or request.tokens
        if not 0 < len(inputs) <= MAX_INPUTS:
            raise BadRequest(f"The request has {len(inputs)} inputs; expected 1 to {MAX_INPUTS}.", param="input")
        dimensions = encoder.dimensions if request.dimensions is None else request.dimensions
        if not 0 < dimensions <= encoder.dimensions:
            raise BadRequest(
                f"{dimensions} dimensions are not allowed: the model's vectors have {encoder.dimensions}, and they can "
                "be cut to any number from 1 on.",
                param="dimensions",
            )
        rows = [self._tokens(number, text, truncate=request.truncate) for number, text in enumerate(request.texts, 1)]
        rows = rows or request.tokens
        if request.truncate:
            rows = [_cut(encoder, row) for row in rows]
        for number, row in enumerate(rows, 1):
            self._check(encoder, number, row)
        return Prepared(rows, dimensions, cut=dimensions < encoder.dimensions)

    def submit(self, request_id: str, prepared: Prepared) -> None:
        encoder = self._need_encoder()
        longest = max(map(len, prepared.rows))
        if not encoder.room(longest):
            granted = f"{self._options.kv_bytes // 2**20} MiB"
            message = f"A text of {longest} tokens needs more memory than the {granted} it may take here: split it."
            self._refused.append(RequestError(request_id, "never_fits", message, "input"))
            return
        count = len(prepared.rows)
        job = self._jobs[request_id] = _Job(request_id, prepared, [b""] * count, count)
        # Longest first: neighbours are of like length, and little is padded.
        order = sorted(range(count), key=lambda row: len(prepared.rows[row]), reverse=True)
        self._waiting.extend((job, row) for row in order)

    def cancel(self, request_id: str) -> None:
        if job := self._jobs.pop(request_id, None):
            self._waiting = deque(place for place in self._waiting if place[0] is not job)
            if self._batch and not any(self._is_open(one) for one, _ in self._batch.places):
                self._batch = None
            self._cancelled.append((request_id, "cancelled", Usage(job.tokens_done)))

    def busy(self) -> bool:
        return bool(self._jobs or self._cancelled or self._refused)

    def step(self) -> list[Event]:
        cancelled, self._cancelled = self._cancelled, []
        refused, self._refused = self._refused, []
        events: list[Event] = [*refused]
        if cancelled:
            events.append(Step([], cancelled))
        if self._batch is None and self._waiting:
            self._batch = self._next_batch(self._need_encoder())
        if self._batch and (vectors := next(self._batch.reading)) is not None:
            places, self._batch = self._batch.places, None
            events += self._take(places, vectors)
        return events

    def idle(self) -> bool:
        return False

    def trim(self) -> tuple[int, int]:
        return give_back()

    def close(self) -> None:
        self._waiting.clear()
        self._jobs.clear()
        self._cancelled.clear()
        self._refused.clear()
        self._batch = self._encoder = None
        self.trim()

    def _tokens(self, number: int, text: str, *, truncate: bool) -> list[int]:
        """Raises ``ContextTooLong`` for a text that is far too long before all of it is read."""
        encoder = self._need_encoder()
        most = encoder.info.context
        # Some more than is kept: the last tokens of a part are others than those of the whole.
        part = beginning(lambda some: len(encoder.tokenize(some)), text, most + _SPARE_TOKENS)
        if len(part) < len(text) and not truncate:
            raise ContextTooLong(
                f"Input {number} has {len(text)} characters, which are more than the {most} tokens that this model "
                "takes: shorten or split it.",
                param="input",
            )
        return encoder.tokenize(part)

    def _check(self, encoder: Encoder, number: int, row: list[int]) -> None:
        most, vocab_size = encoder.info.context, encoder.info.vocab_size
        if not row:
            raise BadRequest(f"Input {number} is empty.", param="input")
        if len(row) > most:
            raise ContextTooLong(
                f"Input {number} has {len(row)} tokens, and this model takes at most {most}: shorten or split it.",
                param="input",
            )
        # MLX reads beyond the table for such an id, without a word.
        if not all(0 <= token < vocab_size for token in row):
            raise BadRequest(f"Input {number} has a token id outside of 0 to {vocab_size - 1}.", param="input")

    def _next_batch(self, encoder: Encoder) -> _Batch:
        """The first text that waits, and others of at least half its length as far as there is room."""
        job, row = self._waiting[0]
        longest = len(job.prepared.rows[row])
        room = encoder.room(longest)
        chosen: list[_Place] = []
        others: deque[_Place] = deque()
        while self._waiting and len(chosen) < room:
            place = self._waiting.popleft()
            length = len(place[0].prepared.rows[place[1]])
            (chosen if longest <= 2 * length <= 2 * longest else others).append(place)
        self._waiting.extendleft(reversed(others))
        return _Batch(chosen, encoder.read([one.prepared.rows[row] for one, row in chosen]))

    def _take(self, places: list[_Place], vectors: mx.array) -> list[Event]:
        encoder = self._need_encoder()
        if encoder.recipe.normalize:
            vectors = _normalized(vectors)
        mx.eval(vectors)
        touched: dict[str, _Job] = {}
        for vector, (job, row) in zip(vectors, places, strict=True):
            if not self._is_open(job):
                continue
            if job.prepared.cut:
                vector = vector[: job.prepared.dimensions]  # noqa: PLW2901 - it is the same vector, shorter
                vector = _normalized(vector) if encoder.recipe.normalize else mx.contiguous(vector)  # noqa: PLW2901
            job.vectors[row] = bytes(memoryview(cast("Any", vector)))
            job.left -= 1
            job.tokens_done += len(job.prepared.rows[row])
            touched[job.id] = job
        # Freed buffers of ever new shapes would pile up in MLX's cache.
        mx.clear_cache()
        return [self._ending(job) if job.left == 0 else _progress(job) for job in touched.values()]

    def _ending(self, job: _Job) -> Embedded:
        del self._jobs[job.id]
        return Embedded(job.id, b"".join(job.vectors), job.prepared.dimensions, Usage(job.tokens))

    def _is_open(self, job: _Job) -> bool:
        return self._jobs.get(job.id) is job

    def _need_encoder(self) -> Encoder:
        if self._encoder is None:
            raise InternalError("no model is loaded in this worker.")
        return self._encoder


def _cut(encoder: Encoder, row: list[int]) -> list[int]:
    """As long as the model takes; the special token at the end, which it may pool, is kept."""
    most = encoder.info.context
    if len(row) <= most:
        return row
    empty = encoder.tokenize("")
    closing = row[-1:] if empty[-1:] == row[-1:] else []
    return row[: most - len(closing)] + closing


def _progress(job: _Job) -> PrefillProgress:
    return PrefillProgress(job.id, job.tokens_done, job.tokens)


def _normalized(vectors: mx.array) -> mx.array:
    """To unit length; a vector of zeros stays what it is."""
    return vectors / mx.maximum(mx.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
