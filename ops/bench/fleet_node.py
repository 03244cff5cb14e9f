"""One simulated Mac: it keeps its own ledger with the real one's functions, as a real node would."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from fleet_world import GB, GIB, READ_GB_PER_S, SLOTS, START_S, STILL_TO_READ, Model, Request

from plimsoll.cluster.node import NodeView, Traffic
from plimsoll.memory.plan import Need, Seat, choose, clean_up_order
from plimsoll.memory.sample import Level, Reading, Sample

WARNING_PERCENT = 85.0
CRITICAL_PERCENT = 95.0
IDLE_TTL_S = 300.0
UNLOAD_S = 1.0
QUEUE = 64

Later = Callable[[float, Callable[[], None]], None]
Ended = Callable[..., None]


@dataclass
class Resident:
    """A model on this node; it has asked for its load while ``need`` is None."""

    model: Model
    last_used: float
    need: Need | None = None
    ready: bool = False
    leaving: bool = False
    kv_bytes: int = 0
    running: dict[int, Request] = field(default_factory=dict)
    waiting: deque[Request] = field(default_factory=deque)
    knows: set[int] = field(default_factory=set)

    @property
    def footprint_bytes(self) -> int:
        return self.need.total_bytes - self.need.kv_bytes + self.kv_bytes if self.need and self.ready else 0

    def seat(self) -> Seat:
        return Seat(
            self.model.name,
            self.need.total_bytes if self.need else 0,
            self.footprint_bytes,
            self.last_used,
            loaded=self.ready and not self.leaving,
            idle=self.ready and not self.running and not self.waiting,
            running=self.need is not None,
            leaving=self.leaving,
        )


class Node:
    """``later`` calls back after seconds, ``ended`` takes each request's ending, ``refused`` what was not loaded."""

    def __init__(
        self,
        name: str,
        mac: tuple[str, int, float, int],
        *,
        clock: Callable[[], float],
        later: Later,
        ended: Ended,
        refused: Callable[["Node", Resident, str], None],
    ) -> None:
        self.name = name
        _, gib, self._bandwidth, others = mac
        self._total = gib * GIB
        self._others = others * GIB
        self._clock, self._later, self._ended, self._refused = clock, later, ended, refused
        self.up = True
        self.residents: dict[str, Resident] = {}
        self.evictions = self.cleaned = self.loads = 0
        self.fullest_percent = 0.0

    def view(self) -> NodeView:
        now = self._clock()
        seats = tuple(one.seat() for one in self.residents.values())
        traffic = tuple(
            Traffic(name, len(one.running), len(one.waiting), SLOTS) for name, one in self.residents.items()
        )
        return NodeView(
            self.name, self.name, self._sample(), Level.NORMAL, WARNING_PERCENT, CRITICAL_PERCENT, seats, traffic, now
        )

    def ask(self, model: Model) -> None:
        """Load it, once there is room."""
        if model.name not in self.residents:
            self.residents[model.name] = Resident(model, self._clock())
            self._decide()

    def take(self, request: Request) -> bool:
        """Answer it; False where its model is not here or not for long."""
        resident = self.residents.get(request.model.name)
        if not self.up or resident is None or resident.leaving:
            return False
        if len(resident.waiting) >= QUEUE:
            reason = f"{request.model.name} on {self.name} has {QUEUE} requests waiting"
            self._ended(request, "refused", reason, f"queue of {request.model.name}")
            return True
        resident.waiting.append(request)
        resident.last_used = self._clock()
        self._start(resident)
        return True

    def _decide(self) -> None:
        """Grant what was asked for, oldest first, by this node's own ledger; what leaves is waited for."""
        if any(one.leaving for one in self.residents.values()):
            return
        for asking in [one for one in self.residents.values() if one.need is None]:
            others = [one.seat() for one in self.residents.values() if one.need]
            decision = choose(asking.model.needs, others, self._sample(), CRITICAL_PERCENT)
            if decision.plan.verdict == "load":
                self._load(asking, decision.need)
            elif decision.plan.verdict == "evict":
                self.evictions += 1
                self.unload(decision.plan.victims[0])
                return
            else:
                del self.residents[asking.model.name]
                self._refused(self, asking, f"{self.name} has no room after all")

    def unload(self, name: str) -> None:
        resident = self.residents[name]
        resident.leaving = True

        def gone() -> None:
            if self.residents.get(name) is resident:
                del self.residents[name]
                self._decide()

        self._later(UNLOAD_S, gone)

    def look_after(self) -> None:
        """At each report: idle models go when their time is up, and at warning one at a time."""
        seats = [one.seat() for one in self.residents.values()]
        if self._sample().used_percent >= WARNING_PERCENT and not any(one.leaving for one in seats):
            for seat in clean_up_order(seats, aggressive=False)[:1]:
                self.cleaned += 1
                self.unload(seat.name)
        for name, one in self.residents.items():
            if one.seat().evictable and self._clock() - one.last_used > IDLE_TTL_S:
                self.unload(name)

    def fail(self) -> list[Request]:
        """The machine is gone: what ran ends, what waited is handed back."""
        self.up = False
        waiting = [request for one in self.residents.values() for request in one.waiting]
        running = [request for one in self.residents.values() for request in one.running.values()]
        for one in self.residents.values():
            one.running.clear()
        self.residents = {}
        for request in running:
            self._ended(request, "lost", f"{self.name} was lost while it answered")
        return waiting

    def _load(self, resident: Resident, need: Need) -> None:
        self.loads += 1
        resident.need = need
        seconds = START_S + resident.model.weights_bytes / (READ_GB_PER_S * GB)

        def done() -> None:
            if self.residents.get(resident.model.name) is resident:
                resident.ready = True
                self._look()
                self._start(resident)

        self._later(seconds, done)

    def _start(self, resident: Resident) -> None:
        need = resident.need
        if need is None or not resident.ready:
            return
        while resident.waiting and len(resident.running) < SLOTS:
            request = resident.waiting[0]
            kv_bytes = (request.prompt + request.answer) * need.kv_token_bytes
            # A worker admits by the KV cache that an answer may come to need; the first one always fits.
            if resident.running and resident.kv_bytes + kv_bytes > need.kv_bytes:
                return
            resident.waiting.popleft()
            self._answer(resident, request, min(kv_bytes, need.kv_bytes))

    def _answer(self, resident: Resident, request: Request, kv_bytes: int) -> None:
        others = sum(len(one.running) for one in self.residents.values())
        request.known = request.conversation in resident.knows
        prompt = int(request.prompt * STILL_TO_READ) if request.known else request.prompt
        seconds = request.model.seconds(prompt, request.answer, self._bandwidth, others)
        resident.running[request.id] = request
        resident.knows.add(request.conversation)
        resident.kv_bytes += kv_bytes
        self._look()

        def done() -> None:
            if resident.running.pop(request.id, None) is None:
                return  # it ended with its machine
            resident.kv_bytes -= kv_bytes
            resident.last_used = self._clock()
            self._ended(request, "answered")
            self._start(resident)

        self._later(seconds, done)

    def _look(self) -> None:
        self.fullest_percent = max(self.fullest_percent, self._sample().used_percent)

    def _sample(self) -> Sample:
        used = self._others + sum(one.footprint_bytes for one in self.residents.values())
        return Sample(self._clock(), (Reading("host", self._total, used),))
