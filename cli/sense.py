"""Whether a configuration makes sense on this machine: what types and the file alone can't say."""

import psutil

from plimsoll.actors.system import ActorSystem
from plimsoll.catalog import Catalog
from plimsoll.config import Config
from plimsoll.errors import ConfigError
from plimsoll.memory.report import GIB


def refuse_nonsense(config: Config, total_bytes: int | None = None) -> None:
    """Raise ``ConfigError`` for a memory limit that this machine does not have."""
    total_bytes = psutil.virtual_memory().total if total_bytes is None else total_bytes
    limit = config.memory.limit
    if limit is not None and limit > total_bytes:
        raise ConfigError(
            f"memory.limit: {limit / GIB:.1f} GiB is not allowed, this machine has {total_bytes / GIB:.1f} GiB",
            param="memory.limit",
        )


def doubts(config: Config, catalog: Catalog, total_bytes: int | None = None) -> list[str]:
    """Sentences about models that are here and can never be loaded as things are configured."""
    total_bytes = psutil.virtual_memory().total if total_bytes is None else total_bytes
    limit = config.memory.limit
    budget = int((total_bytes if limit is None else limit) * config.memory.critical_percent / 100)
    key = "memory.limit" if limit is not None else "this machine's memory"
    system, found = ActorSystem(config, catalog), []
    for name in catalog.names():
        try:
            ways = system.ways_to_load(catalog.find(name))
        except (OSError, ValueError) as error:
            found.append(f"models.entries.{name}: {error}")
            continue
        least = min((way.total_bytes for way in ways), default=0)
        if least > budget:
            found.append(
                f"{key}: {name} needs {least / GIB:.1f} GiB and can never be loaded into {budget / GIB:.1f} GiB"
            )
    return found
