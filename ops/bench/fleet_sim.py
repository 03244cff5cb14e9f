"""A fleet on a fake clock: one front end that decides with the real functions, simulated nodes that do what it says."""

import heapq
import itertools
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from fleet_node import Node, Resident
from fleet_world import CONVERSATIONS_PER_NODE, Request, Traffic, machines, models

from plimsoll.cluster.affinity import Affinity
from plimsoll.cluster.fleet import Fleet
from plimsoll.cluster.losses import after_loss
from plimsoll.cluster.node import NodeView
from plimsoll.cluster.placement import Fit, Placement, place
from plimsoll.cluster.replicas import Demand, Rules, look, replicate, retire
from plimsoll.cluster.routing import route
from plimsoll.memory.plan import Need

REPORT_S = 2.0
# A model that was refused is not asked for again for this long; requests are told the same until then.
COOL_S = 5.0
AVOID_S = 30.0
WAIT_S = 1.0
MINUTE = 60.0


@dataclass(frozen=True)
class Plan:
    """What is simulated. Failures come as a Poisson process; at ``storm_at_s`` a share of all nodes goes at once."""

    nodes: int
    models: int = 200
    seconds: float = 900.0
    seed: int = 1
    fit: Fit = "tightest"
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
        answer = place(name, self._needs(name), self.fleet.nodes, self.now, avoid=avoid, fit=self.plan.fit)
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
