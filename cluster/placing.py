"""Places models that are loaded nowhere: nodes weigh them, a node is chosen, waiting requests are sent to it."""

from collections.abc import Callable
from typing import Any

import msgspec

from plimsoll.actors.load_line import TURN_S
from plimsoll.actors.replies import Failed
from plimsoll.cluster import node_protocol
from plimsoll.cluster.fleet import Members
from plimsoll.cluster.node_requests import NodeRequests
from plimsoll.cluster.placement import Placement, error, place
from plimsoll.cluster.routing import Replica, route
from plimsoll.errors import PlimsollError
from plimsoll.memory.ledger import Need

# A node that has refused or failed a load is left out for this long.
_AVOID_S = 10.0
# Nothing is evicted or refused by figures from before the question, but a node is waited for no longer than this.
_FRESH_S = 1.0


class Want(msgspec.Struct, frozen=True, eq=False):
    """Called with the node that was chosen, or with the reason why there is none.

    It waits ``until`` then for models that load or answer to make room; at 0 not at all.
    """

    id: str
    go: Callable[[str], None]
    fail: Callable[[PlimsollError], None]
    until: float = 0.0


class _Line:
    """The callers that wait for one model; ``outstanding`` nodes have not answered yet what the model needs.

    A node reports how it stands before it answers, so the figures of the others are from before ``began_s``, perhaps
    from within a load that has ended since and has given back most of what it was granted.
    """

    def __init__(self, outstanding: int, first: Want, began_s: float) -> None:
        self.wants = [first]
        self.outstanding = outstanding
        self.began_s = began_s
        self.weighed = False
        self.failure: PlimsollError | None = None


class Placing:
    """Owned by the Dispatcher. ``needs`` has what is known of models, as the nodes said last."""

    def __init__(self, members: Members, node_requests: NodeRequests, clock: Callable[[], float]) -> None:
        self._members = members
        self._node_requests = node_requests
        self._clock = clock
        self._lines: dict[str, _Line] = {}
        self._avoid: dict[tuple[str, str], tuple[float, str]] = {}
        self.needs: dict[str, tuple[Need, ...]] = {}

    def waiting(self, model: str) -> int:
        line = self._lines.get(model)
        return len(line.wants) if line else 0

    def has(self, model: str, one: str) -> bool:
        """Whether that request waits for a place for the model."""
        line = self._lines.get(model)
        return line is not None and any(want.id == one for want in line.wants)

    def want(self, model: str, want: Want) -> None:
        if there := self._lines.get(model):
            there.wants.append(want)
            return
        nodes = [one.id for one in self._members]
        line = self._lines[model] = _Line(len(nodes), want, self._clock())
        if not nodes:
            self._decide(model)
        for node in nodes:
            self._node_requests.ask(
                node, lambda one: node_protocol.Weigh(one, model), lambda item: self._weighed(model, line, item)
            )

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
        """Things have changed, or time has passed: look again at those that wait for memory to come back."""
        for model, line in list(self._lines.items()):
            if line.weighed:
                self._decide(model)

    def close(self, why: PlimsollError) -> None:
        for model in list(self._lines):
            self._fail(model, why)

    def _weighed(self, model: str, line: _Line, item: Any) -> None:
        line.outstanding -= 1
        if isinstance(item, node_protocol.Ways) and item.needs:
            self.needs[model] = item.needs
        elif isinstance(item, Failed):
            line.failure = item.error
        if self._lines.get(model) is not line:
            return
        known = isinstance(item, node_protocol.Ways) and bool(item.needs)
        if line.outstanding == 0 or (known and not line.weighed):
            self._decide(model)

    def _decide(self, model: str) -> None:
        line, now = self._lines[model], self._clock()
        line.weighed = True
        # While the files are on no node, the model's size is unknown: the node that fetches them decides.
        needs = self.needs.get(model, (Need(),))
        if model not in self.needs and line.failure:
            self._fail(model, line.failure)
            return
        if there := route(self.replicas(model)):
            self._go(model, there.node)
            return
        answer = place(model, needs, self._members.fleet.nodes, now, avoid=self.avoided(model))
        if answer.verdict != "load" and line.outstanding and now - line.began_s < _FRESH_S:
            return
        if answer.verdict == "line":
            self._end_overdue(model, answer, now)
            # Nothing makes way on a node for a load that the node does not know of, so after a while one is chosen.
            if model not in self._lines or now - line.began_s < TURN_S:
                return
        if (answer.placed or answer.verdict == "line") and answer.need is not None:
            self._members.fleet.book(answer.node, model, answer.need.total_bytes, now)
            self._go(model, answer.node)
        elif answer.verdict != "wait":
            self._fail(model, self._refusal(model, answer))

    def _end_overdue(self, model: str, answer: Placement, now: float) -> None:
        """End those that have waited for as long as they may."""
        line = self._lines[model]
        overdue = [want for want in line.wants if now >= want.until]
        line.wants = [want for want in line.wants if now < want.until]
        if not line.wants:
            del self._lines[model]
        for want in overdue:
            want.fail(self._refusal(model, answer))

    def _refusal(self, model: str, answer: Placement) -> PlimsollError:
        reasons = {node: self._in_its_words(model, node) or reason for node, reason in answer.reasons.items()}
        return error(answer.reason, reasons, never=answer.verdict == "never")

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
