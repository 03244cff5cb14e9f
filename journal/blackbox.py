"""The black box: samples, events, runs and peak footprints in a small SQLite file that outlives a killed server.

Callers only append to bounded queues; one thread writes. Whatever happens to the file (locked, full, broken, gone),
the server goes on: it is said once, and tried again.
"""

import collections
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from plimsoll.journal import store
from plimsoll.journal.events import Event
from plimsoll.journal.writer import EVENT, PEAK, SAMPLE, TOKENS, End, Row, Writer
from plimsoll.memory.sample import Level, Sample

log = logging.getLogger("plimsoll.memory")

_SAMPLE_EVERY_S = 1.0
# Ten minutes of samples, and more events than an hour of trouble makes.
_MAX_SAMPLES = 600
_MAX_ROWS = 10_000
# Every place's midnight is at a whole quarter of an hour.
_QUARTER_S = 900


class BlackBox:
    """The writing end. No method raises or waits for the file, but ``flush`` and ``close`` up to their timeout.

    ``problem`` is a sentence while nothing can be written, else "". ``failures`` counts the attempts that failed,
    ``dropped`` the entries that were lost. ``now`` gives seconds since the epoch.
    """

    def __init__(self, path: Path, *, now: Callable[[], float] = time.time, retry_s: float = 5.0) -> None:
        self.path = path
        self.problem = ""
        self.failures = 0
        self.dropped = 0
        self._now = now
        self._retry_s = retry_s
        self._sampled_s: float | None = None
        # An append to a bounded deque is atomic and lets the oldest fall out.
        self._samples: collections.deque[Row] = collections.deque(maxlen=_MAX_SAMPLES)
        self._rows: collections.deque[Row] = collections.deque(maxlen=_MAX_ROWS)
        self._sums: dict[tuple[int, str, str], list[int]] = {}
        self._sums_lock = threading.Lock()
        self._flushes: collections.deque[threading.Event] = collections.deque()
        self._wake = threading.Event()
        self._end: End | None = None
        self._thread = threading.Thread(target=self._write_forever, name="black-box", daemon=True)
        # Only the thread uses these.
        self._writer = Writer(path, now())
        self._pending: list[Row] = []

    def start(self) -> None:
        self._wake.set()
        self._thread.start()

    def sample(self, sample: Sample, level: Level) -> None:
        """Keep ``sample``, unless the last one is less than a second older."""
        is_early = self._sampled_s is not None and 0 <= sample.time_s - self._sampled_s < _SAMPLE_EVERY_S
        if is_early or not sample.readings:
            return
        self._sampled_s = sample.time_s
        most = sample.binding
        footprints = sum(sample.footprints.values())
        self._put(
            self._samples,
            (SAMPLE, (self._now(), most.percent, int(level), most.source, most.used, most.total, footprints)),
        )

    def event(self, event: Event, *, at: float | None = None, number: int | None = None) -> None:
        """``at`` is now, and ``number`` one above the last row's, where they are not given."""
        self._put(self._rows, (EVENT, (number, self._now() if at is None else at, event)))

    def peak(self, key: str, footprint_bytes: int) -> None:
        """A footprint that was measured; the largest of the last 7 days is kept under ``key``."""
        self._put(self._rows, (PEAK, (key, footprint_bytes, self._now())))

    def tokens(self, model: str, key: str, figures: tuple[int, int, int]) -> None:
        """The tokens of one request (prompt, reused of it, answer), added to the sums of its day, model and key."""
        # Summed here: a row for each request would wake the thread for each, and busy hours would fill the queue.
        place = int(self._now() // _QUARTER_S), model, key
        with self._sums_lock:
            is_first = not self._sums
            held = self._sums.get(place)
            if held is None:
                if len(self._sums) >= _MAX_ROWS:
                    self.dropped += 1
                    return
                held = self._sums[place] = [0, 0, 0, 0]
            held[0] += 1
            for number, figure in enumerate(figures, 1):
                held[number] += figure
        if is_first:
            self._wake.set()

    def flush(self, timeout_s: float = 2.0) -> bool:
        """Wait until all that was given so far is in the file; False when that takes longer."""
        done = threading.Event()
        self._flushes.append(done)
        self._wake.set()
        return done.wait(timeout_s)

    def close(self, how: str, timeout_s: float = 2.0) -> None:
        """Write what is left, note that the run ended in order by ``how``, and end the thread."""
        self._end = self._end or (self._now(), how)
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _put(self, queue: collections.deque[Row], row: Row) -> None:
        if len(queue) == queue.maxlen:
            self.dropped += 1
        queue.append(row)
        self._wake.set()

    # ---- the thread

    def _write_forever(self) -> None:
        retry_at = 0.0
        while True:
            self._wait(retry_at)
            end = self._end
            flushes = [self._flushes.popleft() for _ in range(len(self._flushes))]
            if self._write_all(end):
                for done in flushes:
                    done.set()
            else:
                self._flushes.extend(flushes)
                retry_at = time.monotonic() + self._retry_s
            if end:
                self._writer.close()
                return

    def _wait(self, retry_at: float) -> None:
        """Until there is something to write; after a failure until ``retry_at``, since a locked file costs a second."""
        if not self.problem:
            self._wake.wait()
            self._wake.clear()
        while self.problem and not self._end and (left_s := retry_at - time.monotonic()) > 0:
            self._wake.wait(left_s)
            self._wake.clear()

    def _write_all(self, end: End | None, *, again: bool = True) -> bool:
        try:
            is_last = False
            while not is_last:
                # What failed comes first, alone: meanwhile the queues keep their bounds.
                self._pending = self._pending or self._drain()
                is_last = not self._samples and not self._rows
                self.dropped += self._writer.write(self._pending, self._now(), end if is_last else None)
                self._pending = []
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the file, the server goes on
            is_mended = self._on_failure(error)
            return again and is_mended and self._write_all(end, again=False)
        if self.problem:
            log.info("the black box of memory is written again: %s (%d entries lost)", self.path, self.dropped)
            self.problem = ""
        return True

    def _drain(self) -> list[Row]:
        with self._sums_lock:
            sums, self._sums = self._sums, {}
        tokens: list[Row] = [
            (TOKENS, (quarter * _QUARTER_S, model, key, *figures)) for (quarter, model, key), figures in sums.items()
        ]
        rows = [queue.popleft() for queue in (self._rows, self._samples) for _ in range(len(queue))]
        return rows + tokens

    def _on_failure(self, error: Exception) -> bool:
        """Say it once; True when a broken file was moved out of the way, so that a new one can be begun."""
        self.failures += 1
        # Another server may have begun a new file at this path already.
        is_replaced = self._writer.is_replaced()
        self._writer.close()
        if store.is_broken(error) and not is_replaced:
            try:
                aside = store.move_aside(self.path)
            except OSError as second:
                error = second
            else:
                log.warning("the black box of memory was broken (%s): renamed to %s, a new one begins", error, aside)
                return True
        if not self.problem:
            problem = f"the black box of memory can't be written: {self.path}: {error}"
            log.warning("%s; the server goes on without it and tries again", problem)
            self.problem = problem
        return False
