"""The status of the whole server, put together for ``GetStatus``."""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from plimsoll.actors.footprints import StuckWorkers
from plimsoll.actors.memory_view import MemoryView
from plimsoll.actors.model_records import ModelRecord, ModelRecords
from plimsoll.actors.status import State, Status
from plimsoll.actors.watchdog_supervision import SILENT_S
from plimsoll.journal.journal import Journal
from plimsoll.memory.load_options import longest_context

# A request that sees no progress for so long is stuck: loads, downloads and conversions report theirs.
STILL_S = 60.0


class Wait(NamedTuple):
    """A request waits for a model; ``since`` is the time of the last progress, on the monotonic clock."""

    model: str
    since: float
    doing: str


def stalled(waits: Iterable[Wait], now: float) -> list[str]:
    """A sentence for each model whose waiting requests see no progress."""
    return [
        f"{one.model}: the oldest waiting request has seen no progress for {now - one.since:.0f} s: {one.doing}"
        for one in waits
        if now - one.since >= STILL_S
    ]


def wait_for(record: ModelRecord) -> Wait | None:
    """The longest wait for this model, and for what."""
    status = record.status
    if record.waiting:
        doing = f"the model is {status.state} and comes back after that; unload it without a grace to hurry it"
        return Wait(status.name, record.waiting_since, doing)
    if status.still_since is None:
        return None
    if status.state != State.LOADING:
        doing = f"the model is {status.state}"
    elif status.pid is not None:
        doing = f"its worker loads it (stage {status.stage}) and says nothing; look at the disk and the network"
    elif record.load_asked:
        doing = f"its load waits for memory that others still hold; GET /admin/plan?model={status.name} says whose"
    elif record.need is None:
        doing = "its files could not be looked at yet; look at the disk that they are on"
    else:
        doing = "neither its worker process nor its files answer; look at the disks that Python and they are on"
    return Wait(status.name, status.still_since, doing)


class StatusReport:
    """Owned by the Supervisor. ``sampler_lag_s`` belongs to the newest sample."""

    def __init__(
        self,
        memory_view: MemoryView,
        records: ModelRecords,
        stuck: StuckWorkers,
        journal: Journal,
        clock: Callable[[], float],
    ) -> None:
        self._memory_view = memory_view
        self._records = records
        self._stuck = stuck
        self._journal = journal
        self._clock = clock
        self.sampler_lag_s = 0.0

    def status(self) -> Status:
        memory_view, records = self._memory_view, self._records
        admission: Literal["open", "closed"] = "open" if memory_view.open and not records.closed else "closed"
        rates = {record.status.name: record.throughput.per_second for record in records}
        needs = {record.status.name: record.need for record in records if record.need}
        return Status(
            level=memory_view.level,
            sample=memory_view.sample,
            models=[record.status for record in records],
            admission=admission,
            stopping=records.closed,
            problems=self._problems(),
            footprints={record.status.name: record.footprint_bytes for record in records},
            sampler_lag_s=self.sampler_lag_s,
            tokens_per_s={name: rate for name, rate in rates.items() if rate},
            pinned=frozenset(records.pinned()),
            seconds_to_critical=memory_view.seconds_to_critical,
            seats=tuple(records.seats()),
            contexts={name: longest_context(need) for name, need in needs.items()},
            granted={name: need.total_bytes for name, need in needs.items()},
            kv_bytes={name: need.kv_bytes for name, need in needs.items()},
            kv_most_bytes={name: max(need.kv_bytes, need.kv_most_bytes) for name, need in needs.items()},
        )

    def _problems(self) -> list[str]:
        problems = []
        age_s = self._clock() - self._memory_view.sampled_at
        failed = self._memory_view.sample.failed if self._memory_view.sample else ()
        if self._memory_view.blind or age_s > SILENT_S:
            reason = f"the last reading is {age_s:.0f} s old"
            if "limit" in failed and age_s <= SILENT_S:
                reason = "not every footprint is known, so memory.limit can't be kept"
            problems.append(f"memory can't be read: {reason}, no model is loaded meanwhile")
        if failed:
            problems.append(f"memory readers that fail: {', '.join(failed)}")
        if self._journal.problem:
            problems.append(self._journal.problem)
        problems += self._records.catalog.problems()
        problems += self._stuck.problems()
        problems += stalled(filter(None, map(wait_for, self._records)), self._clock())
        problems += [
            f"{record.status.name}: {record.status.error}"
            for record in self._records
            if record.status.state in (State.FAILED, State.BACKOFF)
        ]
        return problems
