"""Into Ray's cluster, before the server's own signal handlers are set: Ray sets its own when it begins."""

import importlib.util
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from plimsoll.catalog import Catalog
from plimsoll.config import Config
from plimsoll.errors import ConfigError
from plimsoll.journal.journal import Journal

if TYPE_CHECKING:
    from plimsoll.cluster.system import ClusterSystem

_ANSWER_S = 5.0

MakeSystem = Callable[[Config, Catalog, Journal, dict[str, int]], "ClusterSystem"]


def connect(config: Config) -> MakeSystem:
    """Join the cluster; what comes back makes the system that serves with its nodes. Call it on the main thread.

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
    import ray._private.worker  # noqa: PLC0415 - as said

    # log_to_driver leaves out one thread, which prints to stdout what Ray's nodes complain of.
    ray._private.worker._worker_logs_enabled = False  # noqa: SLF001 - there is no other way

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
    from plimsoll.cluster.ray_link import RayLink  # noqa: PLC0415 - loads Ray
    from plimsoll.cluster.settings import node_settings  # noqa: PLC0415 - as said
    from plimsoll.cluster.system import ClusterSystem  # noqa: PLC0415 - as said

    def make(config: Config, catalog: Catalog, journal: Journal, footprints: dict[str, int]) -> ClusterSystem:
        return ClusterSystem(config, catalog, journal, footprints, RayLink(node_settings(config)))

    return make


def _look_for(address: str) -> None:
    """Raise ``OSError`` or ``ValueError`` where nobody listens: Ray itself would wait for minutes."""
    if address != "auto":
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), _ANSWER_S).close()
