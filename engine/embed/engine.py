"""The engine of encoders: texts in, one vector each out; or a query and documents in, one score each out.

Runs in a worker process only.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from plimsoll.catalog.source import Progress
from plimsoll.engine.embed import encoder_preparation
from plimsoll.engine.embed.encoder_preparation import Prepared
from plimsoll.engine.embed.encoders import Encoder, open_encoder
from plimsoll.engine.load.weights import give_back
from plimsoll.engine.protocol import (
    Embedded,
    EngineOptions,
    Event,
    Lease,
    ModelInfo,
    PrefillProgress,
    Request,
    RequestError,
    Step,
    Usage,
)
from plimsoll.engine.row_guard import NoFiniteScore, RowGuard, poisons, row_failed
from plimsoll.errors import InternalError


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
    """One embedding model or cross encoder; see ``plimsoll.engine.engine.Engine``.

    Texts of all requests share batches of like length. A step reads a bounded number of tokens. Usage counts the
    special tokens that the model wants around a text, but no padding. A batch that can't be read is read again text by
    text, so that only the request whose text it was ends with an error.
    """

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._encoder: Encoder | None = None
        self._waiting: deque[_Place] = deque()
        self._alone: deque[_Place] = deque()
        self._guard = RowGuard()
        self._batch: _Batch | None = None
        self._jobs: dict[str, _Job] = {}
        self._cancelled: list[tuple[str, str, Usage]] = []
        self._refused: list[RequestError] = []

    def load(self, path: Path, progress: Progress) -> ModelInfo:
        self._encoder = open_encoder(path, self._options, progress)
        return self._encoder.info

    def prepare(self, request: Request, so_far: Sequence[int] = ()) -> Prepared:  # noqa: ARG002 - vectors have none
        return encoder_preparation.prepare(self._need_encoder(), request)

    def submit(self, request_id: str, prepared: Prepared) -> None:
        with self._guard(request_id):
            self._submit(request_id, prepared)
        if error := self._guard.take(request_id):
            self._refused.append(row_failed(request_id, error, 0))

    def _submit(self, request_id: str, prepared: Prepared) -> None:
        encoder = self._need_encoder()
        longest = max(map(len, prepared.rows))
        if not encoder.room(longest):
            granted = f"{self._options.kv_bytes // 2**20} MiB"
            message = f"A text of {longest} tokens needs more memory than the {granted} it may take here: split it."
            self._refused.append(RequestError(request_id, "never_fits", message, prepared.param))
            return
        count = len(prepared.rows)
        job = self._jobs[request_id] = _Job(request_id, prepared, [b""] * count, count)
        # Longest first: neighbours are of like length, and little is padded.
        order = sorted(range(count), key=lambda row: len(prepared.rows[row]), reverse=True)
        self._waiting.extend((job, row) for row in order)

    def cancel(self, request_id: str) -> None:
        if job := self._jobs.get(request_id):
            self._forget(job)
            self._cancelled.append((request_id, "cancelled", Usage(job.tokens_done)))

    def busy(self) -> bool:
        return bool(self._jobs or self._cancelled or self._refused)

    def step(self) -> list[Event]:
        cancelled, self._cancelled = self._cancelled, []
        refused, self._refused = self._refused, []
        events: list[Event] = [*refused]
        if cancelled:
            events.append(Step([], cancelled))
        if self._batch is None:
            self._batch = self._next_alone() or (self._next_batch(self._need_encoder()) if self._waiting else None)
        return events + self._read(self._batch) if self._batch else events

    def idle(self) -> bool:
        return False

    def lease(self, lease: Lease) -> None:
        """Its room stays as it was at the load."""

    def give_way(self) -> list[Event]:
        self.trim()
        return []

    def trim(self) -> tuple[int, int]:
        return give_back()

    def close(self) -> None:
        self._waiting.clear()
        self._alone.clear()
        self._jobs.clear()
        self._cancelled.clear()
        self._refused.clear()
        self._batch = self._encoder = None
        self.trim()

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

    def _next_alone(self) -> _Batch | None:
        while self._alone:
            job, row = self._alone.popleft()
            if self._is_open(job):
                return _Batch([(job, row)], self._need_encoder().read([job.prepared.rows[row]]))
        return None

    def _read(self, batch: _Batch) -> list[Event]:
        try:
            vectors = next(batch.reading)
            if vectors is None:
                return []
            self._batch = None
            return self._take(batch.places, vectors)
        except BaseException as error:
            if poisons(error):
                raise
            self._batch = None
            if len(batch.places) == 1:
                return [self._fail(batch.places[0], error)]
        self._alone.extend(batch.places)
        return []

    def _fail(self, place: _Place, error: BaseException) -> RequestError:
        job, row = place
        self._forget(job)
        if isinstance(error, NoFiniteScore):
            param = job.prepared.param
            what = "vector for input" if param == "input" else "score for document"
            message = (
                f"The model computed no finite {what} {row + 1}: it holds NaN or infinity. Its weights are "
                "damaged, or this text overflows the precision they are kept in. Leave the text out or change it."
            )
            return RequestError(job.id, "internal_error", message, param)
        return row_failed(job.id, error, 0)

    def _forget(self, job: _Job) -> None:
        del self._jobs[job.id]
        self._waiting = deque(place for place in self._waiting if place[0] is not job)
        if self._batch and not any(self._is_open(one) for one, _ in self._batch.places):
            self._batch = None

    def _take(self, places: list[_Place], vectors: mx.array) -> list[Event]:
        encoder = self._need_encoder()
        if encoder.recipe.normalize:
            vectors = _normalized(vectors)
        finite: Any = mx.isfinite(vectors).all(axis=-1)
        mx.eval(vectors, finite)
        failed: list[Event] = []
        touched: dict[str, _Job] = {}
        for vector, (job, row), is_finite in zip(vectors, places, finite.tolist(), strict=True):
            if not self._is_open(job):
                continue
            packed = b""
            with self._guard(job.id):
                if not is_finite:
                    raise NoFiniteScore
                packed = self._packed(encoder, vector, job)
            if error := self._guard.take(job.id):
                touched.pop(job.id, None)
                failed.append(self._fail((job, row), error))
                continue
            job.vectors[row] = packed
            job.left -= 1
            job.tokens_done += len(job.prepared.rows[row])
            touched[job.id] = job
        # Freed buffers of ever new shapes would pile up in MLX's cache.
        mx.clear_cache()
        return failed + [self._ending(job) if job.left == 0 else _progress(job) for job in touched.values()]

    def _packed(self, encoder: Encoder, vector: mx.array, job: _Job) -> bytes:
        if job.prepared.cut:
            vector = vector[: job.prepared.dimensions]
            vector = _normalized(vector) if encoder.recipe.normalize else mx.contiguous(vector)
        return bytes(memoryview(cast("Any", vector)))

    def _ending(self, job: _Job) -> Embedded:
        del self._jobs[job.id]
        return Embedded(job.id, b"".join(job.vectors), job.prepared.dimensions, Usage(job.tokens))

    def _is_open(self, job: _Job) -> bool:
        return self._jobs.get(job.id) is job

    def _need_encoder(self) -> Encoder:
        if self._encoder is None:
            raise InternalError("no model is loaded in this worker.")
        return self._encoder


def _progress(job: _Job) -> PrefillProgress:
    return PrefillProgress(job.id, job.tokens_done, job.tokens)


def _normalized(vectors: mx.array) -> mx.array:
    """To unit length; a vector of zeros stays what it is."""
    return vectors / mx.maximum(mx.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
