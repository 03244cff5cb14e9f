"""Which worker processes the Watchdog measures, and the footprints that its samples bring."""

from collections.abc import Callable, Iterable

import msgspec

from plimsoll.actors import messages as m
from plimsoll.actors.model_records import ModelRecord, ModelRecords
from plimsoll.actors.spare_worker import SpareWorker
from plimsoll.actors.status import LOADED, State
from plimsoll.actors.watchdog_supervision import WatchdogSupervision
from plimsoll.catalog.entries import CatalogModel
from plimsoll.journal import events
from plimsoll.journal.journal import Journal
from plimsoll.memory.memory_errors import gib
from plimsoll.memory.sample import Sample, Tracked


class StuckWorkers:
    """Worker processes that SIGKILL did not end; owned by the Supervisor.

    The Watchdog goes on measuring them, so what they hold counts as used and is not granted.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._workers: dict[int, tuple[str, int]] = {}

    def add(self, model: str, pid: int, footprint_bytes: int) -> None:
        """``pid`` was given up as the worker of ``model``."""
        self._workers[pid] = (model, footprint_bytes)
        self._journal.record(events.WorkerStuck(model, pid, footprint_bytes))

    def tracked(self, known: Iterable[Tracked]) -> tuple[Tracked, ...]:
        """The stuck processes that are not among ``known``."""
        others = {one.pid for one in known}
        return tuple(Tracked(pid) for pid in self._workers if pid not in others)

    def on_sample(self, sample: Sample) -> None:
        """Forget the processes that hold nothing any more."""
        if not self._workers or "footprint" in sample.failed:
            return
        for pid in self._workers.keys() - sample.footprints.keys():
            model, _ = self._workers.pop(pid)
            self._journal.record(events.StuckWorkerGone(model, pid))

    def problems(self) -> list[str]:
        return [
            f"the worker of {model} (pid {pid}) can't be ended: its {gib(held)} count as used until the "
            "system lets it go; if it stays, look for a disk or driver that does not answer, or restart the machine"
            for pid, (model, held) in self._workers.items()
        ]


OnSettled = Callable[[CatalogModel, bool, int], None]
"""Called with a model that was loaded, whether it was dequantised, and its footprint in bytes."""


class WorkerFootprints:
    """Owned by the Supervisor. ``tracked`` is the last order to the Watchdog what to measure."""

    def __init__(
        self,
        records: ModelRecords,
        spare: SpareWorker,
        supervision: WatchdogSupervision,
        journal: Journal,
        on_settled: OnSettled,
    ) -> None:
        self._records = records
        self._spare = spare
        self._supervision = supervision
        self._journal = journal
        self._on_settled = on_settled
        self.stuck = StuckWorkers(journal)
        self.tracked = m.Track((), hurry=False)

    def follow(self, *, hurry: bool) -> None:
        """Have the Watchdog measure the present workers; ``hurry`` has it sample as often as makes sense."""
        statuses = [record.status for record in self._records if record.status.pid is not None]
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
            m.tell(self._supervision.watchdog, track)

    def note(self, sample: Sample) -> None:
        """Take over every worker's footprint from this sample."""
        for record in self._records:
            self._measure(record, sample)
        self._spare.footprint_bytes = sample.footprints.get(self._spare.pid or 0, 0)
        self.stuck.on_sample(sample)

    def count_tokens(self) -> None:
        """Ask the models that generate for their token counts; called once per sample, not per token."""
        for record in self._records:
            if record.status.state in (State.BUSY, State.DRAINING) or record.throughput.per_second:
                m.tell(record.ref, m.CountTokens())

    def on_counted(self, message: m.Counted) -> None:
        if record := self._records.get(message.model):
            record.throughput.note(message.tokens, message.at)

    def on_stuck(self, message: m.WorkerStuck) -> None:
        record = self._records.get(message.model)
        self.stuck.add(message.model, message.pid, record.footprint_bytes if record else 0)

    def _measure(self, record: ModelRecord, sample: Sample) -> None:
        status = record.status
        if status.pid is None or status.pid not in sample.footprints:
            return
        held = sum(sample.footprints.get(pid, 0) for pid in (status.pid, *status.more_pids))
        record.footprint_bytes = held
        record.device_bytes = sum(sample.device_bytes.get(pid, 0) for pid in (status.pid, *status.more_pids))
        # Only the first footprint after a load: later ones include the KV caches of conversations.
        if status.state in LOADED and record.need and not record.base_bytes and status.info:
            record.base_bytes = held
            if record.need.leased:
                # The estimate of what it holds besides its KV caches is 300 MiB for the process alone: room for leases.
                record.need = msgspec.structs.replace(record.need, measured_bytes=held, longest=status.info.longest)
            self._on_settled(record.model, record.need.dequantize, held)
            info = status.info
            self._journal.record(events.ModelLoaded(status.name, info.load_s, info.weights_bytes, held, info.device))
