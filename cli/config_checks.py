"""Whether a configuration makes sense on this machine: what types and the file alone can't say."""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import wait
from typing import Any

import psutil
import typer
import yaml

from plimsoll import config
from plimsoll.actors import load_needs
from plimsoll.catalog.entries import CatalogModel
from plimsoll.catalog.facts import Facts, answered, ask_facts
from plimsoll.catalog.installed import default_cache_dir
from plimsoll.catalog.names import Catalog
from plimsoll.cli.link import AsJson, ConfigFile
from plimsoll.cli.output import hint, print_json
from plimsoll.config import Config
from plimsoll.errors import ConfigError, UnknownModel
from plimsoll.http.access.permissions import read_keys
from plimsoll.memory import sources
from plimsoll.memory.ledger import Need
from plimsoll.memory.load_options import Weight
from plimsoll.memory.memory_errors import GIB

# What a start waits for disks to say what models weigh.
_ANSWER_S = 5.0


def check(file: ConfigFile = None, *, as_json: AsJson = False) -> None:
    """Check the configuration and print what is in force."""
    path = config.find_user_file(file)
    effective = config.load(file)
    catalog = Catalog(effective.models)
    refuse_nonsense(effective)
    known, text = facts_of(effective, catalog), config.to_yaml(effective)
    found, defaults = doubts(effective, catalog, known=known), sampling(known)
    if as_json:
        told = {"config": yaml.safe_load(text), "sampling": defaults}
        print_json({"file": str(path) if path else None, "doubts": found, **told})
        return
    for doubt in found:
        hint(f"warning: {doubt}")
    typer.echo(f"# {path or 'defaults; there is no configuration file'}")
    typer.echo(text, nl=False)
    for name, values in defaults.items():
        given = [f"{key} {one['value']:g} ({one['from']})" for key, one in values.items() if one["from"] != "neutral"]
        typer.echo(f"# sampling of {name} where a request leaves it out: {', '.join(given) or 'neutral'}")


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


def doubts(
    config: Config, catalog: Catalog, total_bytes: int | None = None, known: Mapping[str, Facts] | None = None
) -> list[str]:
    """Sentences about models that are here and can never be loaded as things are configured, or are base models.

    A ``models.default`` that is not there gets one, too.

    ``known`` is what ``facts_of`` has returned, if it was called already.
    """
    budget, found, needs = budget_bytes(config, total_bytes), [], dict(weighed(config, catalog))
    if known is None:
        # A disk that is silent has been waited for already.
        known = facts_of(config, catalog, [name for name, ways in needs.items() if not isinstance(ways, Exception)])
    if config.models.default:
        try:
            catalog.find(config.models.default)
        except UnknownModel as error:
            found.append(f"models.default: {error.message}")
    for name, ways in needs.items():
        if isinstance(ways, Exception):
            found.append(f"models.entries.{name}: {ways}")
            continue
        if name in known and known[name].is_base:
            found.append(
                f"models.entries.{name}: its files have no chat template, so it is a base model, which goes on with a "
                "text and answers nobody; name a template file with chat_template"
            )
        least = min((way.total_bytes for way in ways), default=0)
        if least > budget:
            found.append(
                f"{budget_key(config, total_bytes)}: {name} needs {least / GIB:.1f} GiB and can never be loaded into "
                f"{budget / GIB:.1f} GiB"
            )
    return found


def facts_of(config: Config, catalog: Catalog, names: Iterable[str] | None = None) -> dict[str, Facts]:
    """The facts of these models, or of all, by name; a disk that does not answer is waited for once, briefly."""
    asked = ask_facts(map(catalog.find, catalog.names() if names is None else names), default_cache_dir(config))
    wait(asked.values(), _ANSWER_S)
    found = {name: answered(future) for name, future in asked.items()}
    return {name: one for name, one in found.items() if one is not None}


def sampling(known: Mapping[str, Facts]) -> dict[str, dict[str, dict[str, Any]]]:
    """For each chat model whose files are here: what holds where a request leaves a value out, and where it is from."""
    return {name: one.sampling for name, one in known.items() if one.sampling and "completion" in one.capabilities}


def weighed(config: Config, catalog: Catalog) -> Iterator[tuple[str, tuple[Need, ...] | OSError | ValueError]]:
    """Every model with the ways to load it, or why its files can't be read; a dead disk is waited for once, briefly."""
    asked = {name: load_needs.weigh(catalog.find(name), config, {}) for name in catalog.names()}
    wait(asked.values(), _ANSWER_S)
    silent = OSError(f"its files have not answered for {_ANSWER_S:g} s; look at the disk or network share they are on")
    for name, future in asked.items():
        try:
            yield name, future.result() if future.done() else silent
        except (OSError, ValueError) as error:
            yield name, error


def least_bytes(config: Config, model: CatalogModel, weight: Weight) -> int:
    """What a model that weighs so much takes at least once it is loaded."""
    return min(way.total_bytes for way in load_needs.needs_of(model, weight, config, {}))


def budget_bytes(config: Config, total_bytes: int | None = None) -> int:
    """What models may take at most: up to the critical line of the limit, the machine or its container, the smallest.

    ``total_bytes`` stands for machine and container; None reads them.
    """
    total_bytes = _machine_bytes() if total_bytes is None else total_bytes
    limit = config.memory.limit
    return int(min(total_bytes, total_bytes if limit is None else limit) * config.memory.critical_percent / 100)


def budget_key(config: Config, total_bytes: int | None = None) -> str:
    """What sets ``budget_bytes``."""
    total_bytes = _machine_bytes() if total_bytes is None else total_bytes
    limit = config.memory.limit
    return "memory.limit" if limit is not None and limit <= total_bytes else "this machine's memory"


def _machine_bytes() -> int:
    return min(reading.total for reading in sources.sample().readings)
