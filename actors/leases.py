"""The open requests of workers for more room for their KV caches; ``memory/lease.py`` decides."""

from collections.abc import Callable, Iterable

import msgspec

from plimsoll.actors import messages as m
from plimsoll.actors.memory_view import MemoryView
from plimsoll.actors.model_records import ModelRecord, ModelRecords
from plimsoll.actors.pending_unloads import PendingUnloads
from plimsoll.memory.lease import LeaseRequest, decide_lease, lease_percent, may_give, most_kv_bytes

# Workers that are asked to hand back unused room get this time, then it is decided without their answer.
GIVE_WAY_S = 0.5


class _Request:
    """``asked`` names the models that were asked to give way for it; nothing is decided before ``not_before``."""

    def __init__(self, message: m.LeaseRequested, now: float) -> None:
        self.asked_at = now
        self.worker = message.worker
        self.wanted_bytes = message.wanted_bytes
        self.needed_bytes = message.needed_bytes
        self.asked: set[str] = set()
        self.not_before = 0.0


class Leases:
    """Owned by the Supervisor, which has them decided anew at every sample and whenever a model's state changes."""

    def __init__(
        self,
        memory_view: MemoryView,
        records: ModelRecords,
        pending_unloads: PendingUnloads,
        clock: Callable[[], float],
    ) -> None:
        self._memory_view = memory_view
        self._records = records
        self._pending_unloads = pending_unloads
        self._clock = clock
        self._open: dict[str, _Request] = {}

    @property
    def waiting(self) -> bool:
        """Whether a decision waits for the next sample."""
        return bool(self._open)

    def on_request(self, message: m.LeaseRequested) -> None:
        record = self._records.get(message.model)
        if record is None or record.need is None or not record.need.leased:
            return
        if message.longest:
            record.need = msgspec.structs.replace(record.need, longest=message.longest)
        if message.wanted_bytes <= record.need.kv_bytes and message.needed_bytes <= record.need.kv_bytes:
            self._open.pop(message.model, None)
            record.need = msgspec.structs.replace(record.need, kv_bytes=message.wanted_bytes)
        else:
            self._open[message.model] = _Request(message, self._clock())
        self.step()

    def give_way(self, model: str) -> bool:
        """Have all other workers hand back what they do not use; False if none has more than it began with."""
        seats = [record.seat() for record in self._records if record.status.name != model]
        givers = [seat.name for seat in seats if may_give(seat)]
        self._ask(givers)
        return bool(givers)

    def _ask(self, givers: Iterable[str]) -> None:
        for name in givers:
            if giver := self._records.get(name):
                m.tell(giver.ref, m.GiveWay())

    def step(self) -> None:
        """Decide the open requests, the oldest first."""
        for model, request in list(self._open.items()):
            record = self._records.get(model)
            if record is None or record.need is None or record.leaving:
                del self._open[model]
            elif self._memory_view.sample is not None and self._clock() >= request.not_before:
                self._decide(record, record.need.kv_bytes, request)

    def _decide(self, record: ModelRecord, kv_bytes: int, request: _Request) -> None:
        sample, line = self._memory_view.sample, lease_percent(self._memory_view.settings.thresholds)
        assert sample is not None and record.need is not None  # noqa: S101, PT018 - as ``step`` has found
        name = record.status.name
        others = [other.seat() for other in self._records if other is not record]
        most = most_kv_bytes(msgspec.structs.replace(record.need, kv_most_bytes=record.cap_kv_bytes), sample, line)
        asks = LeaseRequest(
            kv_bytes, min(request.wanted_bytes, most), min(request.needed_bytes, most), frozenset(request.asked)
        )
        move = decide_lease(asks, record.seat(), others, sample, line)
        comes_back = self._pending_unloads or sample.time_s < request.asked_at  # it gave its pools back before it asked
        if comes_back and not (move.verdict == "grant" and move.kv_bytes >= asks.needed_bytes):
            return
        match move.verdict:
            case "give_way":
                request.asked |= set(move.models)
                request.not_before = self._clock() + GIVE_WAY_S
                self._ask(move.models)
            case "evict":
                victim = next(other for other in others if other.name == move.models[0])
                self._pending_unloads.ask(victim, f"to make room for answers of {name}", if_idle=True)
            case "grant":
                del self._open[name]
                record.need = msgspec.structs.replace(record.need, kv_bytes=move.kv_bytes, kv_most_bytes=most)
                m.tell(record.ref, m.Lease(request.worker, move.kv_bytes, most, move.more))
