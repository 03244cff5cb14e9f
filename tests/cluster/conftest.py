"""Made-up nodes, with figures in GiB so that they can be checked in the head."""

from typing import Any

import pytest

from plimsoll.cluster.node import NodeView, Standing, Traffic
from plimsoll.memory.plan import Need, Seat
from plimsoll.memory.sample import Level, Reading, Sample

GIB = 1024**3


class Figures:
    """Builders; every node reports at second 1000, of its own clock and of the receiver's."""

    NOW = 1000.0

    def need(self, size: float) -> Need:
        return Need(measured_bytes=int(size * GIB))

    def seat(
        self, name: str, holds: float = 10, reserved: float | None = None, unused_s: float = 0, **flags: Any
    ) -> Seat:
        granted = int((holds if reserved is None else reserved) * GIB)
        return Seat(name, granted, int(holds * GIB), self.NOW - unused_s, **({"idle": True} | flags))

    def view(self, node: str, used: float, *seats: Seat, total: float = 100, **rest: Any) -> NodeView:
        sample = Sample(self.NOW, (Reading("host", int(total * GIB), int(used * GIB)),))
        settled = {"sample": sample, "level": Level.NORMAL, "sent_s": self.NOW, "last_seen": self.NOW, **rest}
        return NodeView(node, node, seats=seats, warning_percent=85.0, critical_percent=95.0, **settled)

    def node(self, node: str, used: float, *seats: Seat, **rest: Any) -> Standing:
        return Standing(self.view(node, used, *seats, **rest))

    def traffic(self, model: str, running: int = 0, queued: int = 0, slots: int = 4) -> Traffic:
        return Traffic(model, running, queued, slots)


@pytest.fixture
def figures() -> Figures:
    return Figures()
