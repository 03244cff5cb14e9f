"""One living ModelActor as the Supervisor knows it."""

from collections import deque

from plimsoll.actors import messages as m
from plimsoll.actors.messages import LEAVING, LOADED, State
from plimsoll.actors.throughput import Throughput
from plimsoll.catalog import CatalogModel
from plimsoll.memory.plan import Need, Seat


class Slot:
    """What the Supervisor knows of one living ModelActor, and what waits for its end or its load."""

    def __init__(self, ref: m.Ref, name: str, model: CatalogModel) -> None:
        self.ref = ref
        self.model = model
        self.status = m.ModelStatus(name, State.COLD)
        self.need: Need | None = None
        self.footprint_bytes = 0
        self.base_bytes = 0
        self.throughput = Throughput()
        self.hung = False
        self.waiting: deque[m.Chat] = deque()
        self.loads: list[m.Reply] = []
        self.unloads: list[m.Reply] = []

    @property
    def leaving(self) -> bool:
        return self.status.state in LEAVING

    def seat(self) -> Seat:
        """The slot as the ledger sees it."""
        status = self.status
        return Seat(
            status.name,
            self.need.total_bytes if self.need else 0,
            self.footprint_bytes,
            status.last_used,
            loaded=status.state in LOADED,
            idle=status.state == State.READY and not status.queued,
            pinned=status.pinned,
            running=status.pid is not None,
            leaving=self.leaving,
        )
