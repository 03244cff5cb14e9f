"""What the Supervisor knows of each living ModelActor."""

from collections import deque
from collections.abc import Callable, Iterator

from plimsoll.actors import messages as m
from plimsoll.actors.expected_wait import Pace
from plimsoll.actors.replies import Reply
from plimsoll.actors.settings import Settings
from plimsoll.actors.status import LEAVING, LOADED, LiveUsage, ModelStatus, State, with_usage
from plimsoll.actors.waiting_requests import WaitingRequests
from plimsoll.actors.watchdog_supervision import WatchdogSupervision
from plimsoll.catalog.entries import CatalogModel
from plimsoll.catalog.names import Catalog
from plimsoll.errors import ShuttingDown, UnknownModel
from plimsoll.memory.ledger import Need, Seat

_THROUGHPUT_WINDOW_S = 2.0


class Throughput:
    """Tokens per second over about the last two seconds; owned by the Supervisor."""

    def __init__(self) -> None:
        self._counts: deque[tuple[float, int]] = deque()

    def note(self, tokens: int, now: float) -> None:
        """``tokens`` were generated in all until ``now``, seconds on the monotonic clock."""
        if self._counts and now - self._counts[-1][0] > _THROUGHPUT_WINDOW_S:
            self._counts.clear()  # it was idle meanwhile
        self._counts.append((now, tokens))
        while len(self._counts) > 2 and self._counts[1][0] <= now - _THROUGHPUT_WINDOW_S:
            self._counts.popleft()

    @property
    def per_second(self) -> float:
        if len(self._counts) < 2:
            return 0.0
        (first_s, first), (last_s, last) = self._counts[0], self._counts[-1]
        return (last - first) / max(last_s - first_s, 1e-3)


class ModelRecord:
    """What the Supervisor knows of one living ModelActor, and the requests that wait for its end or its load.

    Of the ``ways`` in which it may be loaded ``need`` was granted. ``load_asked``: the model waits for the grant of a
    load. ``makes_way``: it begins no more requests, because others
    have waited long for its memory. ``waiting`` holds chats for the next actor of the model,
    the oldest since ``waiting_since``. ``loads`` and ``unloads`` hold the replies to callers that wait for the load or
    the unload.
    """

    def __init__(self, ref: m.Ref, name: str, model: CatalogModel, usage: LiveUsage) -> None:
        self.ref = ref
        self.model = model
        self.published = ModelStatus(name, State.COLD)
        self.usage = usage
        self.need: Need | None = None
        self.ways: tuple[Need, ...] = ()
        self.first_kv_bytes = self.cap_kv_bytes = 0
        self.footprint_bytes = self.device_bytes = 0
        self.base_bytes = 0
        self.throughput = Throughput()
        self.hung = False
        self.handed_back = False
        self.load_asked = False
        self.makes_way = False
        self.waiting = WaitingRequests()
        self.waiting_since = 0.0
        self.loads: list[Reply] = []
        self.unloads: list[Reply] = []

    @property
    def status(self) -> ModelStatus:
        """As the ModelActor has published it last, with what runs and waits at this moment."""
        return with_usage(self.published, self.usage.newest)

    @property
    def leaving(self) -> bool:
        """Whether the actor takes no more requests. It may hand a chat back before it publishes that."""
        return self.handed_back or self.published.state in LEAVING

    def granted(self, need: Need) -> None:
        """The load was granted in this way."""
        self.need, self.first_kv_bytes, self.cap_kv_bytes = need, need.kv_bytes, need.kv_most_bytes

    def seat(self) -> Seat:
        """The model as the ledger sees it."""
        status = self.status
        return Seat(
            status.name,
            self.need.total_bytes if self.need else 0,
            self.footprint_bytes,
            status.last_used,
            loaded=status.state in LOADED,
            idle=status.state == State.READY and (self.makes_way or not status.queued),
            pinned=status.pinned,
            # The process starts in the background and has no pid before.
            running=status.pid is not None or self.need is not None,
            leaving=self.leaving,
            until_eased=status.until_eased,
            paused_since=self.usage.newest.paused_since,
            paused_until=self.usage.newest.paused_until,
            waits_until=self.usage.newest.waits_until,
            returnable_bytes=max(0, self.need.kv_bytes - self.first_kv_bytes) if self.need else 0,
            device_bytes=self.device_bytes,
        )


class Pins:
    """Pins set at run time; owned by the Supervisor's ``ModelRecords``."""

    def __init__(self) -> None:
        self._said: dict[str, bool] = {}

    def say(self, name: str, *, pinned: bool) -> None:
        """Pin or unpin, until the server ends or the entry in the file changes."""
        self._said[name] = pinned

    def said(self, name: str) -> bool | None:
        """The pin set at run time; None if there is none, so that the entry in the file holds."""
        return self._said.get(name)

    def names(self, catalog: Catalog) -> list[str]:
        """The names of all pinned models, those without an actor too."""
        by_entry = dict.fromkeys(catalog.pinned(), True)
        return [name for name, pinned in (by_entry | self._said).items() if pinned]

    def forget(self, before: Catalog, now: Catalog) -> None:
        """Forget the pins of models whose entry in the file has changed."""
        for name in list(self._said):
            old, new = known(before, name), known(now, name)
            if old is None or new is None or old.pin != new.pin:
                del self._said[name]


def known(catalog: Catalog, name: str) -> CatalogModel | None:
    try:
        return catalog.find(name)
    except UnknownModel:
        return None


StartModel = Callable[[CatalogModel, m.Rules, m.Ref, LiveUsage], m.Ref]
"""Starts the ModelActor of a model by these rules; called with the Supervisor and with the usage that it shows."""


class ModelRecords:
    """Owned by the Supervisor. With ``closed`` no actor is started any more, because the server stops."""

    def __init__(
        self,
        owner: m.Ref,
        catalog: Catalog,
        supervision: WatchdogSupervision,
        start: StartModel,
        settings: Settings,
    ) -> None:
        self._owner = owner
        self._supervision = supervision
        self._start = start
        self._records: dict[str, ModelRecord] = {}
        self._paces: dict[str, Pace] = {}
        self.catalog = catalog
        self.settings = settings
        self.pins = Pins()
        self.closed = False

    def __iter__(self) -> Iterator[ModelRecord]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def get(self, name: str) -> ModelRecord | None:
        """The living actor of ``name``, if there is one."""
        return self._records.get(name)

    def get_or_start(self, name: str) -> ModelRecord:
        """The living actor of ``name``, started if there is none. Raises ``UnknownModel``, ``ShuttingDown``."""
        if self.closed:
            raise shutting_down()
        record = self._records.get(name)
        if record is None:
            model = self.catalog.find(name)
            usage = LiveUsage(self._paces.setdefault(name, Pace()))
            ref = self._start(model, self._rules(model), self._owner, usage)
            record = self._records[name] = ModelRecord(ref, name, model, usage)
            m.tell(self._supervision.watchdog, m.Subscribe(record.ref))
            if (pinned := self.pins.said(name)) is not None:
                m.tell(record.ref, m.Pin(pinned))
        return record

    def has(self, name: str, life: str) -> bool:
        """Whether the present actor of the model is this one (``life`` is its ``actor_urn``)."""
        record = self._records.get(name)
        return record is not None and record.ref.actor_urn == life

    def end(self, name: str) -> ModelRecord | None:
        """Forget and stop the actor of ``name``, which will load nothing more."""
        record = self._records.pop(name, None)
        if record:
            record.ref.stop(block=False)
        return record

    def seats(self) -> list[Seat]:
        """All models as the ledger sees them."""
        return [record.seat() for record in self]

    def pinned(self) -> list[str]:
        """The names of all pinned models, those without an actor too."""
        return self.pins.names(self.catalog)

    def follow(self, catalog: Catalog, settings: Settings, drain_s: float) -> list[tuple[str, m.Rules | m.Unload]]:
        """Follow this configuration from now on. Returns each model's rules, or the order to unload."""
        self.pins.forget(self.catalog, catalog)
        self.catalog, self.settings = catalog, settings
        return [(name, self._follow(record, known(catalog, name), drain_s)) for name, record in self._records.items()]

    def _follow(self, record: ModelRecord, model: CatalogModel | None, drain_s: float) -> m.Rules | m.Unload:
        if model is None or not model.loads_like(record.model):
            # Another model's tokens mean something else.
            goes_on = model is not None and model.source == record.model.source
            return m.Unload("the configuration changed", drain_s, hand_back=True, pause=goes_on)
        record.model = model
        return self._rules(model)

    def _rules(self, model: CatalogModel) -> m.Rules:
        return m.Rules(model.pin, model.idle_ttl_s, self.settings)


def shutting_down() -> ShuttingDown:
    """The error for requests that come while the server stops."""
    return ShuttingDown("the server is stopping", retry_after_s=5.0)
