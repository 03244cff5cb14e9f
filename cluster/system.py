"""The cluster in the place of one machine's actor system: what http starts, tells and stops."""

import contextlib

import pykka

from plimsoll.actors import messages as m
from plimsoll.actors.system import STOP_MARGIN_S, ActorSystem, Stopped, thresholds_of
from plimsoll.actors.timers import ThreadTimers
from plimsoll.catalog import Catalog, CatalogModel
from plimsoll.cluster.dispatcher import Dispatcher
from plimsoll.cluster.ray_link import RayLink
from plimsoll.cluster.replicas import Rules
from plimsoll.config import Config
from plimsoll.journal.journal import Journal
from plimsoll.memory.plan import Need

_ACTOR_STOP_S = 5.0
# How long a start waits for the nodes that are there; one that comes later is used as well.
_FIRST_NODES_S = 30.0


class ClusterSystem:
    """Dispatcher, timers and the link to the nodes."""

    def __init__(
        self, config: Config, catalog: Catalog, journal: Journal, footprints: dict[str, int], link: RayLink
    ) -> None:
        self._config = config
        self._link = link
        # Only ever asked what models weigh, where their files are on this machine.
        self._scales = ActorSystem(config, catalog, journal=journal, footprints=footprints)
        self._catalog = catalog
        self._timers: ThreadTimers | None = None
        self.journal = journal
        self.supervisor: m.Ref

    def start(self) -> None:
        """Start everything; returns when the nodes that are there have reported, or after half a minute."""
        config, self._timers = self._config, ThreadTimers()
        rules = Rules(grow_after_s=config.cluster.grow_after, shrink_after_s=config.cluster.shrink_after)
        self.supervisor = Dispatcher.start(
            self._catalog,
            self._link,
            self.journal,
            self._timers,
            thresholds=thresholds_of(config.memory),
            rules=rules,
            slots=config.engine.max_batch,
            queue=config.models.queue,
            critical_grace_s=config.memory.critical_grace,
        )
        self._link.start(self.supervisor)
        self._link.settled.wait(_FIRST_NODES_S)

    def stop(self, grace_s: float) -> None:
        """Running answers get ``grace_s``, then every worker on every node is stopped."""
        stopped = Stopped()
        if m.tell(self.supervisor, m.StopAll(grace_s, stopped)):
            stopped.wait(grace_s + STOP_MARGIN_S)
        self._link.close()
        with contextlib.suppress(pykka.Timeout):
            self.supervisor.stop(timeout=_ACTOR_STOP_S)
        if self._timers:
            self._timers.close()

    def ways_to_load(self, model: CatalogModel) -> tuple[Need, ...]:
        """As ``ActorSystem`` has it, by the files on this machine."""
        return self._scales.ways_to_load(model)
