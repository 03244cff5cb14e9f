"""Workers that can't be ended: processes that the kernel does not let go, not even after SIGKILL."""

from collections.abc import Iterable

from plimsoll.journal import events
from plimsoll.journal.journal import Journal
from plimsoll.memory.report import gib
from plimsoll.memory.sample import Sample, Tracked


class StuckWorkers:
    """Owned by the Supervisor. They stay measured, so that what they hold counts as used and is granted to nobody."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._workers: dict[int, tuple[str, int]] = {}

    def add(self, model: str, pid: int, footprint_bytes: int) -> None:
        """``pid`` was given up as the worker of ``model``."""
        self._workers[pid] = (model, footprint_bytes)
        self._journal.record(events.WorkerStuck(model, pid, footprint_bytes))

    def tracked(self, known: Iterable[Tracked]) -> tuple[Tracked, ...]:
        """Those to be measured besides the ``known`` ones."""
        others = {one.pid for one in known}
        return tuple(Tracked(pid) for pid in self._workers if pid not in others)

    def on_sample(self, sample: Sample) -> None:
        """Forget those that hold nothing any more."""
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
