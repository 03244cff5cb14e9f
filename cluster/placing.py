"""Models that are wanted and not loaded anywhere: weighed by the nodes, placed, and whoever waits sent there."""

from collections.abc import Callable
from typing import Any

import msgspec

from plimsoll.actors import messages as m
from plimsoll.cluster import wire
from plimsoll.cluster.errands import Errands
from plimsoll.cluster.members import Members
from plimsoll.cluster.placement import place
from plimsoll.cluster.refusals import error
from plimsoll.cluster.routing import Replica, route
from plimsoll.errors import PlimsollError
from plimsoll.memory.plan import Need

# A node that has just refused or failed a load is left out for so long.
_AVOID_S = 10.0


class Want(msgspec.Struct, frozen=True, eq=False):
    """Somebody who waits for a place: called with the node, or with the reason why there is none."""

    id: str
    go: Callable[[str], None]
    fail: Callable[[PlimsollError], None]


class _Line:
    """Who waits for one model; ``outstanding`` nodes have not said yet what it takes."""

    def __init__(self, outstanding: int, first: Want) -> None:
        self.wants = [first]
        self.outstanding = outstanding
        self.weighed = False
        self.failure: PlimsollError | None = None


class Placing:
    """Owned by the Dispatcher. ``needs`` has what is known of models, as the nodes said last."""

    def __init__(self, members: Members, errands: Errands, clock: Callable[[], float]) -> None:
        self._members = members
        self._errands = errands
        self._clock = clock
        self._lines: dict[str, _Line] = {}
        self._avoid: dict[tuple[str, str], tuple[float, str]] = {}
        self.needs: dict[str, tuple[Need, ...]] = {}

    def waiting(self, model: str) -> int:
        line = self._lines.get(model)
        return len(line.wants) if line else 0

    def want(self, model: str, want: Want) -> None:
        if there := self._lines.get(model):
            there.wants.append(want)
            return
        nodes = [one.id for one in self._members]
        line = self._lines[model] = _Line(len(nodes), want)
        if not nodes:
            self._decide(model)
        for node in nodes:
            self._errands.ask(node, lambda one: wire.Weigh(one, model), lambda item: self._weighed(model, line, item))

    def cancel(self, model: str, one: str) -> bool:
        """Whether it waited; it does not any more."""
        line = self._lines.get(model)
        found = line and next((want for want in line.wants if want.id == one), None)
        if line and found:
            line.wants.remove(found)
            if not line.wants:
                del self._lines[model]
        return bool(found)

    def refused(self, model: str, node: str, why: str) -> None:
        """The node has not loaded it, ``why`` in its own words: by figures newer than those that it was chosen by."""
        self._members.fleet.unbook(node, model)
        self._avoid[model, node] = (self._clock() + _AVOID_S, why)

    def replicas(self, model: str) -> list[Replica]:
        """Where it is loaded or being loaded, but for loads that their nodes have just refused."""
        avoided = self.avoided(model)
        return [one for one in self._members.fleet.replicas(model) if one.ready or one.node not in avoided]

    def avoided(self, model: str) -> frozenset[str]:
        now = self._clock()
        self._avoid = {key: one for key, one in self._avoid.items() if one[0] > now}
        return frozenset(node for name, node in self._avoid if name == model)

    def step(self) -> None:
        """Things have changed: look again at those that wait for memory to come back."""
        for model, line in list(self._lines.items()):
            if line.weighed:
                self._decide(model)

    def close(self, why: PlimsollError) -> None:
        for model in list(self._lines):
            self._fail(model, why)

    def _weighed(self, model: str, line: _Line, item: Any) -> None:
        line.outstanding -= 1
        if isinstance(item, wire.Ways) and item.needs:
            self.needs[model] = item.needs
        elif isinstance(item, m.Failed):
            line.failure = item.error
        if self._lines.get(model) is not line or line.weighed:
            return
        if (isinstance(item, wire.Ways) and item.needs) or line.outstanding == 0:
            self._decide(model)

    def _decide(self, model: str) -> None:
        line, now = self._lines[model], self._clock()
        line.weighed = True
        # While its files are on no node nothing is known of it: the one that fetches them decides then.
        needs = self.needs.get(model, (Need(),))
        if model not in self.needs and line.failure:
            self._fail(model, line.failure)
            return
        if there := route(self.replicas(model)):
            self._go(model, there.node)
            return
        answer = place(model, needs, self._members.fleet.nodes, now, avoid=self.avoided(model))
        if answer.placed and answer.need is not None:
            self._members.fleet.book(answer.node, model, answer.need.total_bytes, now)
            self._go(model, answer.node)
        elif answer.verdict != "wait":
            reasons = {node: self._in_its_words(model, node) or reason for node, reason in answer.reasons.items()}
            self._fail(model, error(answer.reason, reasons, never=answer.verdict == "never"))

    def _in_its_words(self, model: str, node: str) -> str:
        """Why the node has just refused the model; empty where it has not."""
        found, member = self._avoid.get((model, node)), self._members.get(node)
        return f"{member.name} has just refused it: {found[1]}" if found and member else ""

    def _go(self, model: str, node: str) -> None:
        for want in self._lines.pop(model).wants:
            want.go(node)

    def _fail(self, model: str, why: PlimsollError) -> None:
        for want in self._lines.pop(model).wants:
            want.fail(why)
