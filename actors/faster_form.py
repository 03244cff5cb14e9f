"""Models that were loaded packed while memory was short get back to their faster, dense form when it is not any more.

``memory/load_options.py`` says whether that form fits by one sample; here it is seen to fit for a while.
"""

import contextlib
from collections.abc import Callable

from plimsoll.actors import messages as m
from plimsoll.actors.memory_view import MemoryView
from plimsoll.actors.model_records import ModelRecord, ModelRecords
from plimsoll.actors.pending_unloads import PendingUnloads
from plimsoll.actors.status import SERVING, State
from plimsoll.errors import PlimsollError
from plimsoll.journal import events
from plimsoll.journal.journal import Journal
from plimsoll.memory.ledger import without
from plimsoll.memory.load_options import FasterWay, dense_way, faster_way
from plimsoll.memory.sample import Level

REASON = "to load it in its faster form"
# For so long the faster form has to fit in every sample before a model is loaded anew for it; twice as long after each
# time it was, so that a load that keeps failing, or memory that keeps changing, costs less and less.
FITS_S = 60.0
_MOST_FITS_S = 3600.0
# A model that has just answered may be asked again at any moment. Meanwhile it writes its conversations to disk.
IDLE_S = 10.0


class FasterForms:
    """Owned by the Supervisor, which has them decided anew at every sample."""

    def __init__(
        self,
        memory_view: MemoryView,
        records: ModelRecords,
        pending_unloads: PendingUnloads,
        journal: Journal,
        clock: Callable[[], float],
    ) -> None:
        self._memory_view = memory_view
        self._records = records
        self._pending_unloads = pending_unloads
        self._journal = journal
        self._clock = clock
        self._fits_since: dict[str, float] = {}
        self._changes: dict[str, int] = {}

    def step(self, *, at_rest: bool) -> None:
        """Unload the first model that may be loaded anew; ``at_rest`` if no load, lease or unload waits for memory."""
        view = self._memory_view
        loading = any(record.status.state == State.LOADING for record in self._records)
        if not at_rest or loading or not view.open or view.level > Level.NORMAL or self._records.closed:
            self._fits_since.clear()
            return
        now = self._clock()
        fitting = {record.status.name: way for record in self._records if (way := self._way(record)) and way.fits}
        self._fits_since = {name: self._fits_since.get(name, now) for name in fitting}
        for name, way in fitting.items():
            record = self._records.get(name)
            if record and now - self._fits_since[name] >= self._wait_s(name) and self._is_idle(record):
                self._unload(record, way)
                return

    def load_again(self, name: str, former: ModelRecord) -> None:
        """The model's process has ended for its faster form: its next life loads it, and keeps it for as long."""
        # A changed configuration may have no such model any more.
        with contextlib.suppress(PlimsollError):
            record = self._records.get_or_start(name)
            if not former.published.pinned:
                m.tell(record.ref, m.KeepAlive(name, former.published.idle_ttl_s))
            m.tell(record.ref, m.Warm())

    def _way(self, record: ModelRecord) -> FasterWay | None:
        sample, need = self._memory_view.sample, record.need
        # Of a group only the part on this machine is known here.
        if sample is None or need is None or record.status.state not in SERVING or record.model.group:
            return None
        if (way := dense_way(record.ways, need)) is None:
            return None
        others = [other.seat() for other in self._records if other is not record]
        warning = self._memory_view.settings.thresholds.warning
        return faster_way(way, others, without(sample, record.footprint_bytes), warning)

    def _wait_s(self, name: str) -> float:
        return min(_MOST_FITS_S, FITS_S * float(2 ** self._changes.get(name, 0)))

    def _is_idle(self, record: ModelRecord) -> bool:
        seat = record.seat()
        return seat.idle and not seat.leaving and self._clock() - seat.last_used >= IDLE_S

    def _unload(self, record: ModelRecord, way: FasterWay) -> None:
        name = record.status.name
        fits_s = self._clock() - self._fits_since.pop(name)
        self._changes[name] = self._changes.get(name, 0) + 1
        self._journal.record(events.FasterForm(name, way.required_bytes, way.room_bytes, fits_s))
        self._pending_unloads.ask(record.seat(), REASON, if_idle=True, reload=True)
