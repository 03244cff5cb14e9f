"""The Watchdog: samples memory on a thread of its own and sends every sample to the Supervisor.

Changes of level go to the Supervisor and to all models. As long as samples confirm critical or emergency, each of them
goes to the models too, directly: stopping a worker must not wait for a busy Supervisor.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import pykka

from plimsoll.actors import messages as m
from plimsoll.actors.memory_view import Gauge
from plimsoll.journal import events
from plimsoll.journal.journal import Journal
from plimsoll.memory.levels import (
    History,
    LevelState,
    ReadersState,
    Thresholds,
    advance,
    advance_readers,
    next_interval_s,
)
from plimsoll.memory.reclaim import POLL_S
from plimsoll.memory.sample import Level, Sample, Sampler, Tracked

_EVENTS: dict[Level, type[m.MemoryEvent]] = {
    Level.NORMAL: m.MemoryNormal,
    Level.WARNING: m.MemoryWarning,
    Level.CRITICAL: m.MemoryCritical,
    Level.EMERGENCY: m.MemoryEmergency,
}
_RETRY_S = 1.0


class _Taken(m.Message, frozen=True):
    """From the sampling thread: a sample, or why none could be taken."""

    sample: Sample | None
    error: str = ""
    lag_s: float = 0.0


class Watchdog(pykka.ThreadingActor):
    """Owns the level. Every sample goes to the Supervisor, every change of level to all, every urgent one to models."""

    use_daemon_thread = True

    def __init__(
        self,
        sampler: Sampler,
        thresholds: Thresholds,
        journal: Journal,
        set_limit: Callable[[int | None], object] = lambda _limit_bytes: None,
        *,
        level: Level = Level.NORMAL,
        gauge: Gauge | None = None,
    ) -> None:
        """``set_limit`` changes the limit that the sampler compares footprints with; None: no limit.

        ``level`` is the level at the start. ``gauge`` is set to the level of each sample alone.
        """
        super().__init__()
        self._set_limit = set_limit
        self._gauge = gauge or Gauge()
        self._journal = journal
        self._history = History()
        self._sampler = sampler
        self._thresholds = thresholds
        self._state = LevelState(level, level)
        self._failing = False
        self._readers = ReadersState()
        self._latest: Sample | None = None
        self._reader: m.Ref | None = None
        self._models: list[m.Ref] = []
        # Replaced whole by the actor, read by the sampling thread.
        self._tracked: tuple[Tracked, ...] = ()
        self._hurry = False
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._sample_forever, name="memory-sampler", daemon=True)

    def on_start(self) -> None:
        self._thread.start()

    def on_stop(self) -> None:
        self._stopping = True
        self._wake.set()

    def on_receive(self, message: Any) -> None:
        match message:
            case _Taken():
                if message.sample is None:
                    self._note_failure(message.error)
                else:
                    self._on_sample(message.sample, message.lag_s)
            case m.Track():
                # A load may wait for the memory of a process that has just ended: sample at once.
                fewer = {one.pid for one in self._tracked} - {one.pid for one in message.workers}
                wake = fewer or message.hurry != self._hurry
                self._tracked, self._hurry = message.workers, message.hurry
                if wake:
                    self._wake.set()
            case m.Marks():
                self._set_limit(message.settings.limit_bytes)
                self._thresholds = message.settings.thresholds
                # Percentages of another limit can't be compared.
                self._history = History()
                self._wake.set()
            case m.Subscribe():
                self._subscribe(message)
            case _:
                super().on_receive(message)

    def _subscribe(self, message: m.Subscribe) -> None:
        if not message.every_sample:
            self._models = [ref for ref in self._models if ref.is_alive()]
            self._models.append(message.ref)
            return
        self._reader = message.ref
        if self._latest:
            m.tell(self._reader, m.Sampled(self._latest, self._state.level, self._state.confirmed))

    def _sample_forever(self) -> None:
        """The sampling thread. It must not raise, wait for an actor, or depend on the level."""
        due_s = time.monotonic()
        while not self._stopping:
            began_s = time.monotonic()
            lag_s = max(0.0, began_s - due_s)
            try:
                sample = self._sampler(self._tracked)
                wait_s = POLL_S if self._hurry else next_interval_s(sample, self._thresholds)
                taken = _Taken(sample, lag_s=lag_s)
            except Exception as error:  # noqa: BLE001 - whatever a reader raises, sampling goes on
                wait_s, taken = _RETRY_S, _Taken(None, f"{type(error).__name__}: {error}", lag_s)
            # Counted from the beginning of the sample, so that a slow reader shows as lag too.
            due_s = began_s + wait_s
            if not m.tell(self.actor_ref, taken):
                return
            self._wake.wait(wait_s)
            self._wake.clear()

    def _on_sample(self, sample: Sample, lag_s: float) -> None:
        before, raw_before = self._state.level, self._state.raw_before
        self._state = advance(self._state, sample, self._thresholds)
        level, confirmed = self._state.level, self._state.confirmed
        self._gauge.note(sample, self._state.raw_before)
        # First of all: a worker that has to stop must not wait for a log handler or the Supervisor.
        urgent = _EVENTS[confirmed](sample) if confirmed >= Level.CRITICAL else None
        if urgent:
            self._tell_models(urgent)
        self._note_readers(sample.failed)
        self._latest = sample
        if raw_before >= Level.CRITICAL > self._state.raw_before:
            # The rise before a release is no forecast of what follows, and would delay loads for 3 s.
            self._history = History()
        self._history.add(sample)
        if self._reader:
            seconds = self._history.seconds_to_critical(self._thresholds.critical)
            m.tell(self._reader, m.Sampled(sample, level, confirmed, seconds, lag_s))
        if level != before:
            self._note_change(before, sample, urgent)

    def _note_change(self, before: Level, sample: Sample, told: m.MemoryEvent | None) -> None:
        level = self._state.level
        event = _EVENTS[level](sample, falls=level < before)
        if event != told:
            self._tell_models(event)
        if self._reader:
            m.tell(self._reader, event)
        self._journal.record(
            events.LevelChanged(
                events.LevelName.of(level),
                events.LevelName.of(before),
                sample.used_percent,
                sample.source_of(level, self._thresholds.of(level)),
            )
        )

    def _tell_models(self, event: m.MemoryEvent) -> None:
        self._models = [ref for ref in self._models if m.tell(ref, event)]

    def _note_readers(self, failed: tuple[str, ...]) -> None:
        told = self._readers.told
        self._readers, news = advance_readers(self._readers, failed)
        if news:
            self._journal.record(events.ReadersFailed(news))
        elif (told or self._failing) and not (self._readers.told or failed):
            self._journal.record(events.ReadersRecovered())
        self._failing = self._failing and bool(failed)

    def _note_failure(self, error: str) -> None:
        if not self._failing:
            self._journal.record(events.ReadersFailed((), error))
        self._failing = True
        if self._reader:
            m.tell(self._reader, m.Sampled(None, self._state.level))
