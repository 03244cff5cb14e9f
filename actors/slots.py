"""The models that live: at most one actor for each name, started when somebody asks for it."""

from collections.abc import Callable, Iterator

from plimsoll.actors import messages as m
from plimsoll.actors.keeper import Keeper
from plimsoll.actors.pins import Pins, known
from plimsoll.actors.slot import Slot
from plimsoll.catalog import Catalog, CatalogModel
from plimsoll.errors import ShuttingDown
from plimsoll.memory.plan import Seat

StartModel = Callable[[CatalogModel, m.Rules, m.Ref], m.Ref]
"""Starts the ModelActor of a model by these rules; called with the Supervisor too."""


class Slots:
    """Owned by the Supervisor. ``closed`` starts no more of them, for the server stops.

    ``queue`` is how many requests may wait for a model.
    """

    def __init__(
        self,
        owner: m.Ref,
        catalog: Catalog,
        keeper: Keeper,
        start: StartModel,
        *,
        queue: int,
        critical_grace_s: float,
    ) -> None:
        self._owner = owner
        self._keeper = keeper
        self._start = start
        self._critical_grace_s = critical_grace_s
        self._slots: dict[str, Slot] = {}
        self.catalog = catalog
        self.queue = queue
        self.pins = Pins()
        self.closed = False

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots.values())

    def __len__(self) -> int:
        return len(self._slots)

    def get(self, name: str) -> Slot | None:
        """The living actor of ``name``, if there is one."""
        return self._slots.get(name)

    def open(self, name: str) -> Slot:
        """The living actor of ``name``, started if there is none. Raises ``UnknownModel``, ``ShuttingDown``."""
        if self.closed:
            raise shutting_down()
        slot = self._slots.get(name)
        if slot is None:
            model = self.catalog.find(name)
            ref = self._start(model, self._rules(model), self._owner)
            slot = self._slots[name] = Slot(ref, name, model)
            m.tell(self._keeper.watchdog, m.Subscribe(slot.ref))
            if (pinned := self.pins.said(name)) is not None:
                m.tell(slot.ref, m.Pin(pinned))
        return slot

    def end(self, name: str, actor_urn: str) -> Slot | None:
        """Part with an actor that will load nothing more; None for one that is not known, or not any more."""
        slot = self._slots.get(name)
        if slot is None or slot.ref.actor_urn != actor_urn:
            return None
        del self._slots[name]
        slot.ref.stop(block=False)
        return slot

    def seats(self) -> list[Seat]:
        """All as the ledger sees them."""
        return [slot.seat() for slot in self]

    def pinned(self) -> list[str]:
        """The names of all that are pinned, without an actor too."""
        return self.pins.names(self.catalog)

    def follow(self, catalog: Catalog, queue: int, critical_grace_s: float) -> list[tuple[str, m.Rules | None]]:
        """Go by this configuration from now on: every living model with its rules, or None if it has to leave."""
        self.pins.forget(self.catalog, catalog)
        self.catalog, self.queue, self._critical_grace_s = catalog, queue, critical_grace_s
        return [(name, self._follow(slot, known(catalog, name))) for name, slot in self._slots.items()]

    def _follow(self, slot: Slot, model: CatalogModel | None) -> m.Rules | None:
        if model is None or not model.loads_like(slot.model):
            return None
        slot.model = model
        return self._rules(model)

    def _rules(self, model: CatalogModel) -> m.Rules:
        return m.Rules(model.pin, model.idle_ttl_s, self.queue, self._critical_grace_s)


def shutting_down() -> ShuttingDown:
    """The error for whoever asks for something while the server stops."""
    return ShuttingDown("the server is stopping", retry_after_s=5.0)
