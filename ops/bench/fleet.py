"""A fleet of Macs simulated on a fake clock: ``python ops/bench/fleet.py``, about a minute on one core.

The decisions are the real functions of ``cluster/`` and of the memory ledger, and they are timed. Machines, models,
traffic and failures are made up: the constants below state them, and everything is drawn from one seed, so the same
seed gives the same run. Nothing is loaded. docs/scale.md says what such runs showed.
"""

import argparse
import gc
import heapq
import itertools
import random
import time
from bisect import bisect
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice

import msgspec
from load import percentile
from report import Report, machine

from plimsoll.cluster.fleet import Fleet
from plimsoll.cluster.node import NodeView, Standing
from plimsoll.cluster.node import Traffic as NodeTraffic
from plimsoll.cluster.placement import Placement, place
from plimsoll.cluster.replicas import Demand, Rules, after_loss, look, replicate, retire
from plimsoll.cluster.routing import Affinity, beginnings, route
from plimsoll.memory.ledger import Need, Seat, choose, clean_up_order
from plimsoll.memory.load_options import Weight, ways_to_load
from plimsoll.memory.sample import Level, Reading, Sample

GB = 10**9
GIB = 1024**3
# Memory, share of the fleet, memory bandwidth in GB/s (Apple's data sheets), and what other programs hold, in GiB.
MACS = (
    ("M4 Max 64 GB", 64, 0.4, 546, 8),
    ("M4 Max 128 GB", 128, 0.3, 546, 10),
    ("M2 Ultra 192 GB", 192, 0.2, 800, 12),
    ("M3 Ultra 512 GB", 512, 0.1, 819, 16),
)
# Billions of parameters, those a token uses, KV values per token (2 x layers x KV heads x head size; DeepSeek's
# latent: layers x 576), as published.
MODELS = (
    ("llama-3.2-3b", 3.2, 3.2, 57_344),
    ("phi-3.5-mini", 3.8, 3.8, 196_608),
    ("qwen2.5-7b", 7.6, 7.6, 28_672),
    ("llama-3.1-8b", 8.0, 8.0, 65_536),
    ("mistral-nemo-12b", 12.2, 12.2, 81_920),
    ("qwen2.5-14b", 14.8, 14.8, 98_304),
    ("mistral-small-24b", 23.6, 23.6, 81_920),
    ("gemma-2-27b", 27.2, 27.2, 188_416),
    ("qwen3-30b-a3b", 30.5, 3.3, 49_152),
    ("qwen2.5-coder-32b", 32.8, 32.8, 131_072),
    ("mixtral-8x7b", 46.7, 12.9, 65_536),
    ("llama-3.3-70b", 70.6, 70.6, 163_840),
    ("qwen2.5-72b", 72.7, 72.7, 163_840),
    ("mistral-large-123b", 122.6, 122.6, 180_224),
    ("mixtral-8x22b", 140.6, 39.1, 114_688),
    ("qwen3-235b-a22b", 235.1, 22.2, 96_256),
    ("llama-3.1-405b", 405.9, 405.9, 258_048),
    ("deepseek-r1-671b", 671.0, 37.5, 35_136),
)
# Bits per weight with MLX's scales and biases: 32 more for each group of 64.
BITS = (4.5, 6.5, 8.5)
LARGEST_GB = 400
ZIPF = 1.0
SLOTS = 8
CONTEXT = 32_768
TURNS = 4
PROMPT_TOKENS = 1500
ANSWER_TOKENS = 250
THINK_S = 20.0
# New conversations a second and node; each has TURNS turns.
CONVERSATIONS_PER_NODE = 0.05
READ_GB_PER_S = 5.0
START_S = 2.0
# Of the memory bandwidth, what decoding reaches; what one more running answer costs the others; FLOP/s of a prompt.
DECODES_AT = 0.6
SHARED_AT = 0.1
PREFILL_FLOPS = 12e12
# Of a prompt that the node knows already, what is still to be read.
STILL_TO_READ = 0.1
# A node.
WARNING_PERCENT = 85.0
CRITICAL_PERCENT = 95.0
IDLE_TTL_S = 300.0
UNLOAD_S = 1.0
QUEUE = 64

Later = Callable[[float, Callable[[], None]], None]
Ended = Callable[..., None]
# The front end that decides for the fleet.
REPORT_S = 2.0
# A model that was refused is not asked for again for this long; requests are told the same until then.
COOL_S = 5.0
AVOID_S = 30.0
WAIT_S = 1.0
MINUTE = 60.0
# The command.
SIZES = (10, 100, 1000)
SECONDS = 600.0
# Failures: one node of the thousand every 20 s, back after 2 minutes; a tenth of them at once half way.
FAIL_EVERY_NODE_S = 20_000.0
CALLS = 2000


@dataclass(frozen=True)
class Model:
    name: str
    weights_bytes: int
    active_bytes: float
    active_parameters: float
    needs: tuple[Need, ...]

    def seconds(self, prompt: int, answer: int, bandwidth_gb_s: float, others: int) -> float:
        """From its slot to its last token, beside so many other answers on the machine."""
        decode_per_s = DECODES_AT * bandwidth_gb_s * GB / self.active_bytes
        prefill_per_s = PREFILL_FLOPS / (2 * self.active_parameters)
        return (prompt / prefill_per_s + answer / decode_per_s) * (1 + SHARED_AT * others)


@dataclass
class Request:
    """One turn of a conversation; ``ending`` is set once."""

    id: int
    conversation: int
    turn: int
    turns: int
    model: Model
    prompt: int
    answer: int
    arrived: float
    warm: bool = False
    known: bool = False
    sent_again: int = 0
    ending: str = ""
    reason: str = ""


def models(count: int) -> list[Model]:
    """Each base at each width that is small enough, then fine-tunes of those below 100 GB again and again."""
    return list(islice(_models(), count))


def machines(count: int) -> list[tuple[str, int, float, int]]:
    """Kind, GiB, GB/s and GiB of others for each node, mixed evenly."""
    shares = list(accumulate(share for _, _, share, _, _ in MACS))
    picked = (MACS[bisect(shares, (n * 0.618034) % 1.0)] for n in range(count))
    return [(kind, gib, bandwidth, others) for kind, gib, _, bandwidth, others in picked]


class Traffic:
    """Conversations as a Poisson process; popularity goes by Zipf, and slow models tend to be asked for less."""

    def __init__(self, offered: list[Model], per_s: float, seed: int) -> None:
        self._seed = seed
        self._arrivals = random.Random(seed)
        self._per_s = per_s
        self._ranked = sorted(offered, key=lambda one: self._arrivals.random() * one.active_bytes**0.5)
        self._weights = list(accumulate((rank + 1) ** -ZIPF for rank in range(len(offered))))
        self._requests = 0
        self._conversations = 0

    def next_in_s(self) -> float:
        return self._arrivals.expovariate(self._per_s)

    def first(self, now: float) -> Request:
        self._conversations += 1
        draw = self._draw(self._conversations, 1)
        turns = 1 + int(draw.expovariate(1 / (TURNS - 0.5)))
        model = draw.choices(self._ranked, cum_weights=self._weights)[0]
        self._requests += 1
        prompt, answer = _tokens(draw, PROMPT_TOKENS), _tokens(draw, ANSWER_TOKENS)
        return Request(self._requests, self._conversations, 1, turns, model, prompt, answer, now)

    def following(self, before: Request, now: float) -> Request:
        draw = self._draw(before.conversation, before.turn + 1)
        answer = _tokens(draw, ANSWER_TOKENS)
        prompt = min(before.prompt + before.answer + _tokens(draw, PROMPT_TOKENS // 10), CONTEXT - answer)
        self._requests += 1
        return replace(
            before,
            id=self._requests,
            turn=before.turn + 1,
            prompt=prompt,
            answer=answer,
            arrived=now,
            known=False,
            warm=False,
            ending="",
            reason="",
            sent_again=0,
        )

    def think_s(self, before: Request) -> float:
        return self._draw(before.conversation, -before.turn).expovariate(1 / THINK_S)

    def _draw(self, conversation: int, turn: int) -> random.Random:
        """A turn is the same whatever happened before it, so that two runs differ by their rules only."""
        return random.Random(hash((self._seed, conversation, turn)))


def _tokens(draw: random.Random, mean: int) -> int:
    return min(CONTEXT // 4, 1 + int(draw.expovariate(1 / mean)))


def _models() -> Iterator[Model]:
    sizes = [(base, bits) for bits in BITS for base in MODELS if base[1] * bits / 8 <= LARGEST_GB]
    yield from (_model(base, bits) for base, bits in sizes)
    for tune in range(1, 1000):
        yield from (_model(base, bits, f"-tune{tune}") for base, bits in sizes if base[1] * bits / 8 < 100)


def _model(base: tuple[str, float, float, int], bits: float, tune: str = "") -> Model:
    name, billions, active, kv_values = base
    stored = int(billions * GB * bits / 8)
    weight = Weight(stored, stored, stored, kv_values, CONTEXT)
    needs = ways_to_load(weight, device="gpu", dequantize="never", context=CONTEXT, kv_budget_bytes=None, measured={})
    return Model(f"{name}-{int(bits)}bit{tune}", stored, active * GB * bits / 8, active * GB, needs)


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
            NodeTraffic(name, len(one.running), len(one.waiting), SLOTS) for name, one in self.residents.items()
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


@dataclass(frozen=True)
class Plan:
    """What is simulated. Failures come as a Poisson process; at ``storm_at_s`` a share of all nodes goes at once."""

    nodes: int
    models: int = 200
    seconds: float = 900.0
    seed: int = 1
    fail_every_s: float | None = None
    down_s: float = 120.0
    storm_at_s: float | None = None
    storm_share: float = 0.1


@dataclass
class Seen:
    """What is counted; times of decisions are wall-clock microseconds, minutes count by arrival."""

    requests: int = 0
    endings: Counter[str] = field(default_factory=Counter)
    by_minute: defaultdict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    micros: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    verdicts: Counter[str] = field(default_factory=Counter)
    refusals: list[Placement] = field(default_factory=list)
    why: Counter[str] = field(default_factory=Counter)
    replicated: int = 0
    retired: int = 0
    failures: int = 0
    brought_back: int = 0


class Simulation:
    """``run`` goes to the plan's end, and on until every request that came by then has had its ending.

    ``views`` are all nodes at the plan's end.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.now = 0.0
        self.seen = Seen()
        self.fleet = Fleet()
        self.views: list[NodeView] = []
        self.models = {model.name: model for model in models(plan.models)}
        self._traffic = Traffic([*self.models.values()], plan.nodes * CONVERSATIONS_PER_NODE, plan.seed)
        self._faults = random.Random(plan.seed)
        self._affinity = Affinity()
        self._rules = Rules()
        self._demand: dict[str, Demand] = {}
        self._cool: dict[str, tuple[float, str]] = {}
        self._avoid: dict[str, dict[str, float]] = defaultdict(dict)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        hands = {"clock": lambda: self.now, "later": self._later, "ended": self._ended, "refused": self._refused}
        self.nodes = {f"mac-{n:04}": Node(f"mac-{n:04}", mac, **hands) for n, mac in enumerate(machines(plan.nodes))}
        self._open = 0

    def run(self) -> Seen:
        for number, node in enumerate(self.nodes.values()):
            self._later(REPORT_S * number / len(self.nodes), lambda node=node: self._report(node))
        self._later(REPORT_S, self._arrive)
        self._later(REPORT_S, self._look_after)
        self._later(self.plan.seconds, self._note_views)
        if self.plan.fail_every_s:
            self._later(self._faults.expovariate(1 / self.plan.fail_every_s), self._fail_one)
        if self.plan.storm_at_s:
            self._later(self.plan.storm_at_s, self._storm)
        while self._events and (self.now < self.plan.seconds or self._open):
            self.now, _, what = heapq.heappop(self._events)
            what()
        return self.seen

    def _note_views(self) -> None:
        self.views = [standing.view for standing in self.fleet.nodes]

    # ---- traffic

    def _arrive(self) -> None:
        if self.now < self.plan.seconds:
            self._later(self._traffic.next_in_s(), self._arrive)
            self._come(self._traffic.first(self.now))

    def _come(self, request: Request) -> None:
        self._open += 1
        self.seen.requests += 1
        self._send(request)

    def _ended(self, request: Request, how: str, reason: str = "", kind: str = "") -> None:
        if request.ending:
            raise AssertionError(f"request {request.id} was {request.ending} and now {how}")
        request.ending, request.reason = how, reason
        if how != "answered" and not reason:
            raise AssertionError(f"request {request.id} was {how} without a reason")
        self._open -= 1
        self.seen.endings[how] += 1
        self.seen.why[kind or how] += 1
        minute = self.seen.by_minute[int(request.arrived // MINUTE)]
        minute.update(["all", how, *["warm"] * request.warm, *["known"] * request.known])
        if how == "answered" and request.turn < request.turns:
            self._later(self._traffic.think_s(request), lambda: self._next_turn(request))

    def _next_turn(self, before: Request) -> None:
        if self.now < self.plan.seconds:
            self._come(self._traffic.following(before, self.now))

    # ---- the front end

    def _send(self, request: Request) -> None:
        name = request.model.name
        keys = [b"%d:%d" % (request.conversation, turn) for turn in range(1, request.turn + 1)]
        began = time.perf_counter_ns()
        replicas = [one for one in self.fleet.replicas(name) if one.node not in self._avoid[name]]
        found = route(replicas, self._affinity.find(keys))
        self._took("route", began)
        if found is None:
            self._place_for(request)
            return
        node = self.nodes[found.node]
        request.warm = not request.sent_again and any(one.ready for one in replicas)
        if node.take(request):
            self.fleet.sent(found.node, name)
            self._affinity.remember(keys, found.node)
            return
        # It refused the connection or has just unloaded it: the next one, and not this one again for a while.
        self._avoid[name][found.node] = self.now
        self._again(request)

    def _again(self, request: Request) -> None:
        request.sent_again += 1
        if request.sent_again > 60:
            self._ended(
                request, "refused", f"{request.model.name} found no node that keeps it in a minute", "nowhere to stay"
            )
            return
        self._later(WAIT_S if request.sent_again > 3 else 0.0, lambda: self._send(request))

    def _place_for(self, request: Request) -> None:
        name = request.model.name
        until, reason = self._cool.get(name, (0.0, ""))
        if self.now < until:
            self._ended(request, "refused", reason, "no room")
            return
        answer = self._place(name)
        if answer.placed or answer.verdict == "wait":
            self._again(request)
        else:
            self._cool[name] = (self.now + COOL_S, answer.reason)
            self._ended(request, "refused", answer.reason, "no room")

    def _place(self, name: str) -> Placement:
        avoid = frozenset(self._avoid[name])
        began = time.perf_counter_ns()
        answer = place(name, self._needs(name), self.fleet.nodes, self.now, avoid=avoid)
        self._took("place", began)
        self._carry_out(answer)
        return answer

    def _carry_out(self, answer: Placement) -> None:
        self.seen.verdicts[answer.verdict] += 1
        if answer.placed and answer.need:
            self.fleet.book(answer.node, answer.model, answer.need.total_bytes, self.now)
            node = self.nodes[answer.node]
            if node.up:
                node.ask(self.models[answer.model])
            else:
                self._avoid[answer.model][answer.node] = self.now
                self.fleet.unbook(answer.node, answer.model)
        elif not answer.placed and answer.verdict != "wait":
            self.seen.refusals.append(answer)

    def _refused(self, node: Node, resident: Resident, _reason: str) -> None:
        name = resident.model.name
        self._avoid[name][node.name] = self.now
        self.fleet.unbook(node.name, name)
        for request in resident.waiting:
            self._again(request)

    # ---- reports, replicas

    def _report(self, node: Node) -> None:
        if node.up:
            self._later(REPORT_S, lambda: self._report(node))
            node.look_after()
            view = node.view()
            began = time.perf_counter_ns()
            self.fleet.report(view, self.now)
            self._took("report", began)

    def _look_after(self) -> None:
        """Every two seconds: nodes that fell silent, replicas wanted and not wanted."""
        self._later(REPORT_S, self._look_after)
        for avoided in self._avoid.values():
            for node in [node for node, since in avoided.items() if self.now - since > AVOID_S]:
                del avoided[node]
        for lost in self.fleet.silent(self.now):
            self._lose(lost.id)
        for name in self.models:
            replicas = self.fleet.replicas(name)
            if not replicas:
                continue
            demand = self._demand[name] = look(self._demand.get(name, Demand()), replicas, self.now, self._rules)
            answers = replicate(
                name,
                demand=demand,
                replicas=replicas,
                needs=self._needs(name),
                nodes=self.fleet.nodes,
                now=self.now,
                rules=self._rules,
            )
            for answer in answers:
                if answer.placed:
                    self.seen.replicated += 1
                    self._demand[name] = Demand()
                    self._carry_out(answer)
            if (surplus := retire(demand, replicas, self.now, self._rules)) and self.nodes[surplus].up:
                resident = self.nodes[surplus].residents.get(name)
                if resident and resident.seat().evictable:
                    self.seen.retired += 1
                    self._demand[name] = Demand()
                    self.nodes[surplus].unload(name)

    # ---- failures

    def _fail_one(self) -> None:
        if self.now < self.plan.seconds and self.plan.fail_every_s:
            self._later(self._faults.expovariate(1 / self.plan.fail_every_s), self._fail_one)
            self._fail([*self.nodes.values()][self._faults.randrange(len(self.nodes))])

    def _storm(self) -> None:
        for node in self._faults.sample([*self.nodes.values()], int(len(self.nodes) * self.plan.storm_share)):
            self._fail(node)

    def _fail(self, node: Node) -> None:
        if not node.up:
            return
        self.seen.failures += 1
        for request in node.fail():
            self._again(request)
        self._later(self.plan.down_s, lambda: self._return(node))

    def _return(self, node: Node) -> None:
        self._lose(node.name)
        node.up = True
        self._report(node)

    def _lose(self, node: str) -> None:
        lost = self.fleet.lose(node)
        if lost is None:
            return
        self._affinity.forget(node)
        elsewhere = {seat.name for seat in lost.seats if self.fleet.replicas(seat.name)}
        needs = {seat.name: self._needs(seat.name) for seat in lost.seats}
        nodes = [*self.fleet.nodes]
        began = time.perf_counter_ns()
        returns = after_loss(lost, needs, nodes, self.now, served_elsewhere=elsewhere)
        self._took("after_loss", began)
        for one in returns:
            if one.placement and one.placement.placed:
                self.seen.brought_back += 1
                self._carry_out(one.placement)

    # ---- small things

    def _needs(self, name: str) -> tuple[Need, ...]:
        return self.models[name].needs

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), what))

    def _took(self, what: str, began: int) -> None:
        self.seen.micros[what].append((time.perf_counter_ns() - began) / 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--nodes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of simulated time")
    options = parser.parse_args()
    report = Report()
    how = f"{machine()}; seed {options.seed}"
    print(how)
    began = time.monotonic()
    for nodes in options.nodes:
        simulation = storm(report, nodes, options)
        time_decisions(report, simulation)
    print(f"took {time.monotonic() - began:.0f} s")
    raise SystemExit(bool(report.missed))


def storm(report: Report, nodes: int, options: argparse.Namespace) -> Simulation:
    """With failures, the same traffic for each node whatever their number."""
    plan = Plan(
        nodes,
        options.models,
        options.seconds,
        options.seed,
        fail_every_s=FAIL_EVERY_NODE_S / nodes,
        storm_at_s=options.seconds / 2,
    )
    calm = simulation_counts(run(Plan(nodes, options.models, options.seconds, options.seed)))
    simulation = run(plan)
    seen, counts = simulation.seen, simulation_counts(simulation)
    report.row(f"{nodes} nodes: requests", "", f"{counts['all']:,}, of them {share(counts, 'known')} knew their prompt")
    report.row(f"{nodes} nodes: answered by a warm replica", "", f"{share(counts, 'warm')}")
    ups = f"{counts['loads']} loads, {counts['evictions']} evictions, {counts['cleaned']} unloaded at warning"
    report.row(f"{nodes} nodes: loads", "", f"{ups}, {seen.replicated} replicas more, {seen.retired} retired")
    lost = f"{seen.failures} nodes lost, and with them {share(counts, 'lost')} of answers"
    report.row(f"{nodes} nodes: failures", "", f"{lost}; {seen.brought_back} models brought back")
    refused = f"{share(counts, 'refused')}; without failures {share(calm, 'refused')}"
    report.row(f"{nodes} nodes: refused", "", refused)
    for why, count in seen.why.most_common():
        if why not in ("answered", "lost"):
            print(f"    {count} refused: {why}")
    fullest = max(node.fullest_percent for node in simulation.nodes.values())
    report.row(f"{nodes} nodes: the fullest node ever", "<= 95%", f"{fullest:.1f}%", ok=fullest <= 95.0)
    return simulation


def time_decisions(report: Report, simulation: Simulation) -> None:
    """Each decision alone on the fleet as it stands at the end, in wall-clock microseconds."""
    views, nodes, draw = simulation.views, simulation.plan.nodes, random.Random(simulation.plan.seed)
    names = sorted(simulation.models)
    fleet, now = Fleet(), simulation.plan.seconds
    for view in views:
        fleet.report(view, now)
    gc.collect()
    gc.freeze()

    def placing(standings: list[Standing]) -> Callable[[], object]:
        return lambda: place("new", simulation.models[draw.choice(names)].needs, standings, now)

    roomy = [Standing(view) for view in views]
    full = [Standing(filled(view, idle=True)) for view in views]
    stuck = [Standing(filled(view, idle=False)) for view in views]
    known = Affinity()
    conversation = beginnings("m", [{"role": "user", "content": "x" * 4000}] * 8)
    known.remember(conversation[:6], views[0].id)
    held = [name for name in names if fleet.replicas(name)]
    timed = {
        "route": micros(lambda: route(fleet.replicas(draw.choice(held)), known.find(conversation))),
        "place": micros(placing(roomy)),
        "place, evicting": micros(placing(full)),
        "refuse": micros(placing(stuck), CALLS // 10),
        "report": micros(lambda: fleet.report(draw.choice(views), now)),
    }
    gc.unfreeze()
    for what, took in timed.items():
        p50, p99 = percentile(took, 0.5), percentile(took, 0.99)
        report.row(
            f"{nodes} nodes: {what}", "", f"{1e6 / (sum(took) / len(took)):,.0f}/s, p50 {p50:.0f} us, p99 {p99:.0f} us"
        )


def filled(view: NodeView, *, idle: bool) -> NodeView:
    """The node with nothing left: other programs hold the rest, and its models may be evicted or not."""
    if view.sample is None:
        return view
    seats = tuple(msgspec.structs.replace(seat, idle=idle, loaded=True, leaving=False) for seat in view.seats)
    total = view.sample.binding.total
    claims = sum(seat.claim_bytes for seat in seats)
    used = int(total * view.critical_percent / 100) - claims
    sample = msgspec.structs.replace(view.sample, readings=(Reading("host", total, used),))
    return msgspec.structs.replace(view, sample=sample, seats=seats)


def run(plan: Plan) -> Simulation:
    simulation = Simulation(plan)
    simulation.run()
    return simulation


def simulation_counts(simulation: Simulation) -> Counter[str]:
    counts: Counter[str] = sum(simulation.seen.by_minute.values(), Counter())
    for node in simulation.nodes.values():
        counts.update(evictions=node.evictions, cleaned=node.cleaned, loads=node.loads)
    counts["cold"] = counts["all"] - counts["warm"]
    return counts


def share(counts: Counter[str], what: str) -> str:
    return f"{100 * counts[what] / max(1, counts['all']):.2f}%"


def micros(what: Callable[[], object], calls: int = CALLS) -> list[float]:
    took = []
    for _ in range(calls):
        began = time.perf_counter_ns()
        what()
        took.append((time.perf_counter_ns() - began) / 1000)
    return took


if __name__ == "__main__":
    main()
