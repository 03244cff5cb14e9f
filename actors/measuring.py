"""Whom the Watchdog measures, and what is noted of each sample."""

from collections.abc import Callable

from plimsoll.actors import messages as m
from plimsoll.actors.keeper import Keeper
from plimsoll.actors.messages import LOADED, State
from plimsoll.actors.slot import Slot
from plimsoll.actors.slots import Slots
from plimsoll.actors.spare import Spare
from plimsoll.actors.stuck import StuckWorkers
from plimsoll.catalog import CatalogModel
from plimsoll.journal import events
from plimsoll.journal.journal import Journal
from plimsoll.memory.sample import Sample, Tracked

OnSettled = Callable[[CatalogModel, bool, int], None]
"""Called with a model that was loaded, whether it was dequantised, and its footprint in bytes."""


class Measuring:
    """Owned by the Supervisor. ``tracked`` is what the Watchdog was last told to measure."""

    def __init__(self, slots: Slots, spare: Spare, keeper: Keeper, journal: Journal, on_settled: OnSettled) -> None:
        self._slots = slots
        self._spare = spare
        self._keeper = keeper
        self._journal = journal
        self._on_settled = on_settled
        self.stuck = StuckWorkers(journal)
        self.tracked = m.Track((), hurry=False)

    def follow(self, *, hurry: bool) -> None:
        """Have the Watchdog measure the workers there are, fast while something is waited for."""
        statuses = [slot.status for slot in self._slots if slot.status.pid is not None]
        workers = tuple(
            Tracked(status.pid, status.mlx_bytes, status.info.working_set_bytes if status.info else 0)
            for status in statuses
            if status.pid is not None
        )
        workers += tuple(Tracked(pid) for status in statuses for pid in status.more_pids)
        if self._spare.pid:
            workers += (Tracked(self._spare.pid),)
        workers += self.stuck.tracked(workers)
        track = m.Track(workers, hurry or any(status.state == State.LOADING for status in statuses))
        if track != self.tracked:
            self.tracked = track
            m.tell(self._keeper.watchdog, track)

    def note(self, sample: Sample) -> None:
        """What every worker holds by this sample."""
        for slot in self._slots:
            self._measure(slot, sample)
        self._spare.footprint_bytes = sample.footprints.get(self._spare.pid or 0, 0)
        self.stuck.on_sample(sample)

    def count_tokens(self) -> None:
        """At every sample, so once or a few times a second: nothing is counted per token."""
        for slot in self._slots:
            if slot.status.state in (State.BUSY, State.DRAINING) or slot.throughput.per_second:
                m.tell(slot.ref, m.CountTokens())

    def on_counted(self, message: m.Counted) -> None:
        slot = self._slots.get(message.model)
        if slot is not None and slot.ref.actor_urn == message.actor_urn:
            slot.throughput.note(message.tokens, message.at)

    def on_stuck(self, message: m.WorkerStuck) -> None:
        slot = self._slots.get(message.model)
        self.stuck.add(message.model, message.pid, slot.footprint_bytes if slot else 0)

    def _measure(self, slot: Slot, sample: Sample) -> None:
        status = slot.status
        if status.pid is None or status.pid not in sample.footprints:
            return
        held = sum(sample.footprints.get(pid, 0) for pid in (status.pid, *status.more_pids))
        slot.footprint_bytes = held
        # The first look at the whole model: later ones hold what conversations happened to leave in its caches.
        if status.state in LOADED and slot.need and not slot.base_bytes and status.info:
            slot.base_bytes = held
            self._on_settled(slot.model, slot.need.dequantize, held)
            info = status.info
            self._journal.record(events.ModelLoaded(status.name, info.load_s, info.weights_bytes, held, info.device))
