"""``ActorSystem`` for a cluster: the same interface, served by the cluster's nodes."""

import contextlib
import importlib.util
import socket
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

import pykka

from plimsoll.actors import load_needs
from plimsoll.actors import messages as m
from plimsoll.actors.settings import Settings
from plimsoll.actors.system import STOP_MARGIN_S, Stopped
from plimsoll.actors.timers import ThreadTimers
from plimsoll.catalog.entries import CatalogModel
from plimsoll.catalog.names import Catalog
from plimsoll.cluster.dispatcher import Dispatcher
from plimsoll.cluster.replicas import Rules
from plimsoll.config import Config
from plimsoll.errors import ConfigError
from plimsoll.journal.journal import Journal
from plimsoll.memory.ledger import Need

if TYPE_CHECKING:
    from plimsoll.cluster.ray_link import RayLink  # imports Ray, an extra

_ACTOR_STOP_S = 5.0
# How long a start waits for the cluster's nodes; a node that reports later is used as well.
_FIRST_NODES_S = 30.0
# What the machine at cluster.address gets to accept a connection.
_ANSWER_S = 5.0


class ClusterSystem:
    """Dispatcher, timers and the link to the nodes."""

    def __init__(
        self, config: Config, catalog: Catalog, journal: Journal, footprints: dict[str, int], link: "RayLink"
    ) -> None:
        self._config = config
        self._link = link
        self._footprints = footprints
        self._catalog = catalog
        self._timers: ThreadTimers | None = None
        self.journal = journal
        self.supervisor: m.Ref

    def start(self) -> None:
        """Start everything; returns when the nodes of the cluster have reported, or after half a minute."""
        config, self._timers = self._config, ThreadTimers()
        self._catalog.look_again()
        rules = Rules(grow_after_s=config.cluster.grow_after, shrink_after_s=config.cluster.shrink_after)
        self.supervisor = Dispatcher.start(
            self._catalog,
            self._link,
            self.journal,
            self._timers,
            settings=Settings.of(config),
            rules=rules,
            slots=config.engine.max_batch,
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

    def weigh(self, model: CatalogModel) -> "Future[tuple[Need, ...]]":
        """As ``load_needs.weigh``, by the files on this machine."""
        return load_needs.weigh(model, self._config, self._footprints)


MakeSystem = Callable[[Config, Catalog, Journal, dict[str, int]], ClusterSystem]


def connect(config: Config) -> MakeSystem:
    """Join Ray's cluster; returns what makes the system that serves with its nodes.

    Call it on the main thread, before the server sets its signal handlers: Ray sets its own when it begins.

    Raises ``ConfigError`` where Ray is not installed or can't be reached, or an entry names hosts.
    """
    for name, entry in config.models.entries.items():
        if entry.hosts and entry.enabled:
            key = f"models.entries.{name}.hosts"
            raise ConfigError(
                f"{key}: a cluster's node loads a model by itself; switch the entry off or leave its hosts out, or "
                "serve it by a server of its own without --cluster, on machines that are no nodes",
                param=key,
            )
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("serve --cluster needs Ray, which is not installed: pip install 'mlx-plimsoll[cluster]'")
    import ray  # noqa: PLC0415 - an extra
    import ray._private.worker  # noqa: PLC0415 - an extra

    # log_to_driver=False does not stop the thread that prints the nodes' complaints to stdout; this does.
    ray._private.worker._worker_logs_enabled = False  # noqa: SLF001 - Ray has no public switch

    address = config.cluster.address
    try:
        _look_for(address)
        ray.init(address=address, log_to_driver=False, configure_logging=False, include_dashboard=False)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"cluster.address: Ray can't be reached at {address!r} ({reason}); start it here with ray start --head"
            " --resources='{\"plimsoll_mib\": MIB}' and on the other machines with ray start --address=HEAD:PORT",
            param="cluster.address",
        ) from None
    from plimsoll.cluster.node_server import node_settings  # noqa: PLC0415 - only a cluster needs it
    from plimsoll.cluster.ray_link import RayLink  # noqa: PLC0415 - imports Ray

    def make(config: Config, catalog: Catalog, journal: Journal, footprints: dict[str, int]) -> ClusterSystem:
        return ClusterSystem(config, catalog, journal, footprints, RayLink(node_settings(config)))

    return make


def _look_for(address: str) -> None:
    """Raise ``OSError`` or ``ValueError`` where nobody listens: Ray itself would wait for minutes."""
    if address != "auto":
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), _ANSWER_S).close()
