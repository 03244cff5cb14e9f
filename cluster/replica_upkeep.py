"""Loads that no request waits for: pinned models, models of a lost node, and replicas of busy models."""

import logging
from collections.abc import Callable
from typing import Any

from plimsoll.actors.model_records import Pins
from plimsoll.actors.replies import Failed
from plimsoll.catalog.names import Catalog
from plimsoll.cluster import node_protocol
from plimsoll.cluster.fleet import Members
from plimsoll.cluster.node import NodeView
from plimsoll.cluster.node_requests import NodeRequests
from plimsoll.cluster.placing import Placing, Want
from plimsoll.cluster.replicas import Demand, Rules, after_loss, look, replicate, retire
from plimsoll.errors import PlimsollError

_log = logging.getLogger("plimsoll.cluster")

# A pinned model that fits nowhere is tried again this often: memory can free up without an event.
_PIN_AGAIN_S = 30.0


class Upkeep:
    """Owned by the Dispatcher. A pinned model is pinned on one node; it is the node that keeps it loaded there."""

    def __init__(
        self,
        members: Members,
        placing: Placing,
        node_requests: NodeRequests,
        *,
        catalog: Catalog,
        rules: Rules,
        clock: Callable[[], float],
    ) -> None:
        self._members = members
        self._placing = placing
        self._node_requests = node_requests
        self._rules = rules
        self._clock = clock
        self._demands: dict[str, Demand] = {}
        self._pinned_at: dict[str, str] = {}
        self._pin_again_at: dict[str, float] = {}
        self._pins = Pins()
        self.catalog = catalog
        self.closed = False

    # ---- pinned models

    @property
    def pinned(self) -> frozenset[str]:
        return frozenset(self._pins.names(self.catalog))

    def pin(self, name: str, *, pinned: bool) -> None:
        """It holds until the server ends, or until the file says another thing than before."""
        self._pins.say(name, pinned=pinned)
        self._pin_again_at.pop(name, None)
        if not pinned and (node := self._pinned_at.pop(name, None)):
            self._tell_pin(node, name, pinned=False)

    def follow(self, catalog: Catalog) -> None:
        """Go by this catalog from now on."""
        self._pins.forget(self.catalog, catalog)
        self.catalog = catalog
        for name in self._pinned_at.keys() - self.pinned:
            self._tell_pin(self._pinned_at.pop(name), name, pinned=False)

    def keep_pinned(self) -> None:
        """Every pinned model is pinned on one node, where it is loaded or fits."""
        now = self._clock()
        for name in self.pinned:
            held = {one.node for one in self._placing.replicas(name)}
            if self._pinned_at.get(name) in held or self._pin_again_at.get(name, 0.0) > now or self.closed:
                continue
            self._pin_again_at[name] = now + _PIN_AGAIN_S
            if held:
                self._pin_at(min(held), name)
            else:
                self._placing.want(name, Want("", self._pinner(name), self._why_not(name)))

    def _pinner(self, name: str) -> Callable[[str], None]:
        return lambda node: self._pin_at(node, name)

    def _pin_at(self, node: str, name: str) -> None:
        before = self._pinned_at.get(name)
        if before and before != node:
            self._tell_pin(before, name, pinned=False)
        self._pinned_at[name] = node
        self._tell_pin(node, name, pinned=True)

    def _tell_pin(self, node: str, name: str, *, pinned: bool) -> None:
        self._node_requests.ask(
            node, lambda one: node_protocol.Pin(one, name, pinned), lambda item: self._note(name, item)
        )

    # ---- after a loss

    def restore(self, lost: NodeView) -> None:
        """Load what the lost node held elsewhere, as far as it is worth it and fits."""
        fleet, now = self._members.fleet, self._clock()
        self._pinned_at = {name: node for name, node in self._pinned_at.items() if node != lost.id}
        elsewhere = {seat.name for seat in lost.seats if fleet.replicas(seat.name)}
        nodes = list(fleet.nodes)
        for one in after_loss(lost, self._placing.needs, nodes, now, served_elsewhere=elsewhere):
            _log.info("after the loss of the node %s: %s", lost.name, one.reason)
            if one.placement and one.placement.placed and one.placement.need:
                node = one.placement.node
                fleet.book(node, one.model, one.placement.need.total_bytes, now)
                if one.model in self.pinned:
                    self._pin_at(node, one.model)
                else:
                    self.load(node, one.model)

    def load(self, node: str, model: str) -> None:
        """Have it loaded there, for nobody in particular."""
        self._node_requests.ask(
            node, lambda one: node_protocol.Load(one, model), lambda item: self._loaded(node, model, item)
        )

    # ---- replicas

    def balance(self, unload_grace_s: float) -> None:
        """One look at every model: one more replica, one less, or neither."""
        now, fleet = self._clock(), self._members.fleet
        loaded = {name for standing in fleet.nodes for name in standing.models}
        self._demands = {
            name: look(self._demands.get(name, Demand()), fleet.replicas(name), now, self._rules) for name in loaded
        }
        for name, demand in self._demands.items():
            if not self._grow(name, demand, now):
                self._shrink(name, demand, now, unload_grace_s)

    def _grow(self, name: str, demand: Demand, now: float) -> bool:
        fleet = self._members.fleet
        needs = self._placing.needs.get(name)
        if not needs:
            return False
        grown = replicate(
            name,
            demand=demand,
            replicas=fleet.replicas(name),
            needs=needs,
            nodes=[one for one in fleet.nodes if one.id not in self._placing.avoided(name)],
            now=now,
            rules=self._rules,
        )
        for one in grown:
            if one.placed and one.need:
                _log.info("another replica: %s", one.reason)
                fleet.book(one.node, name, one.need.total_bytes, now)
                self.load(one.node, name)
        return bool(grown)

    def _shrink(self, name: str, demand: Demand, now: float, grace_s: float) -> None:
        pinned = frozenset({self._pinned_at[name]} if name in self._pinned_at else ())
        if node := retire(demand, self._members.fleet.replicas(name), now, self._rules, pinned):
            self._node_requests.ask(node, lambda one: node_protocol.Unload(one, name, grace_s))

    # ---- what becomes of it

    def _loaded(self, node: str, model: str, item: Any) -> None:
        if isinstance(item, Failed):
            self._placing.refused(model, node, item.error.message)
        self._note(model, item)

    def _note(self, model: str, item: Any) -> None:
        if isinstance(item, Failed) and not self.closed:
            _log.warning("%s: %s", model, item.error.message)

    def _why_not(self, name: str) -> Callable[[PlimsollError], None]:
        return lambda error: self._note(name, Failed(error))
