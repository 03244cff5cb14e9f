"""Whether a configuration makes sense on this machine: what types and the file alone can't say."""

import psutil

from plimsoll.actors.system import ActorSystem
from plimsoll.catalog import Catalog, CatalogModel
from plimsoll.config import Config
from plimsoll.errors import ConfigError
from plimsoll.http.access.keys import read_keys
from plimsoll.memory import sources
from plimsoll.memory.needs import Weight
from plimsoll.memory.report import GIB


def refuse_nonsense(config: Config, total_bytes: int | None = None) -> None:
    """Raise ``ConfigError`` for a memory limit or a key's place that this machine does not have."""
    read_keys(config.access.keys)
    total_bytes = psutil.virtual_memory().total if total_bytes is None else total_bytes
    limit = config.memory.limit
    if limit is not None and limit > total_bytes:
        raise ConfigError(
            f"memory.limit: {limit / GIB:.1f} GiB is not allowed, this machine has {total_bytes / GIB:.1f} GiB",
            param="memory.limit",
        )


def doubts(config: Config, catalog: Catalog, total_bytes: int | None = None) -> list[str]:
    """Sentences about models that are here and can never be loaded as things are configured."""
    budget = budget_bytes(config, total_bytes)
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
                f"{budget_key(config)}: {name} needs {least / GIB:.1f} GiB and can never be loaded into "
                f"{budget / GIB:.1f} GiB"
            )
    return found


def least_bytes(config: Config, catalog: Catalog, model: CatalogModel, weight: Weight) -> int:
    """What a model that weighs so much takes at least once it is loaded."""
    return min(way.total_bytes for way in ActorSystem(config, catalog).ways_for(model, weight))


def budget_bytes(config: Config, total_bytes: int | None = None) -> int:
    """What models may take at most: up to the critical line of the limit, or of the machine or its container."""
    if config.memory.limit is not None:
        total_bytes = int(config.memory.limit)
    elif total_bytes is None:
        total_bytes = min(reading.total for reading in sources.sample().readings)
    return int(total_bytes * config.memory.critical_percent / 100)


def budget_key(config: Config) -> str:
    """What sets ``budget_bytes``."""
    return "memory.limit" if config.memory.limit is not None else "this machine's memory"
