"""What a model of the catalog needs to be loaded, as configured and as measured before: weighed without an actor."""

from collections.abc import Mapping
from concurrent.futures import Future

from plimsoll.catalog.disk import DISK
from plimsoll.catalog.entries import CatalogModel
from plimsoll.catalog.installed import default_cache_dir, place
from plimsoll.catalog.source import Group, ModelSource
from plimsoll.catalog.weigh import weigh_source
from plimsoll.config import Config
from plimsoll.engine.handle.environment import compute_device
from plimsoll.memory.ledger import Need
from plimsoll.memory.load_options import Weight, ways_to_load


def weigh(model: CatalogModel, config: Config, footprints: Mapping[str, int]) -> "Future[tuple[Need, ...]]":
    """The ways to load ``model``, none while its files are not here; their headers are read on another thread.

    ``footprints`` holds the bytes that models were seen to take, under ``footprint_key``. The future raises ``OSError``
    or ``ValueError`` for files that can't be read, and never ends while their disk does not answer.
    """
    cache_dir = default_cache_dir(config)

    def ways() -> tuple[Need, ...]:
        weight = weigh_source(model.source, cache_dir, model.group)
        return () if weight is None else needs_of(model, weight, config, footprints)

    return DISK.ask(place(model.source, cache_dir), ways)


def needs_of(model: CatalogModel, weight: Weight, config: Config, footprints: Mapping[str, int]) -> tuple[Need, ...]:
    """The ways to load ``model`` on this machine, the best one first.

    ``weight`` is the model's, or one rank's share where a group serves it; then each way counts this machine's ranks.
    """
    hosts = model.group.hosts if model.group else ()
    here = sum(host.here for host in hosts) or 1
    measured = {
        dense: footprints.get(footprint_key(model.source, dense, model.group), 0) // here for dense in (False, True)
    }
    kv_budget = config.engine.kv_budget
    ways = ways_to_load(
        weight,
        device=compute_device(),
        dequantize=config.engine.dequantize,
        context=model.context,
        kv_budget_bytes=None if kv_budget is None else int(kv_budget) // (len(hosts) or 1),
        measured=measured,
        # A group's ranks keep their shares as they were granted, an encoder has no conversations.
        leased=not (hosts or model.embeddings or weight.no_chats),
    )
    return ways if here == 1 else tuple(need.times(here) for need in ways)


def footprint_key(source: ModelSource, dequantized: bool, group: Group | None = None) -> str:
    """The name under which a model's footprint is kept over restarts."""
    split = f":{sum(host.here for host in group.hosts)} of {len(group.hosts)} {group.split}" if group else ""
    files = f"{source.location}+{source.adapter}" if source.adapter else source.location
    return f"{source.kind}:{files}:{'dense' if dequantized else 'stored'}{split}"
