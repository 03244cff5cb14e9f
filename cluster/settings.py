"""The head's configuration as the nodes get it: no keys, and nothing pinned, for the head says what is pinned where."""

from typing import Any

import msgspec

from plimsoll import config
from plimsoll.catalog import Catalog
from plimsoll.config import Config, ModelsConfig
from plimsoll.units import to_plain


def node_settings(given: Config) -> str:
    """YAML that ``config.parse`` takes."""
    access = msgspec.structs.replace(given.access, keys=[])
    return config.to_yaml(msgspec.structs.replace(given, access=access, models=_without_pins(given.models)))


def models_section(catalog: Catalog) -> dict[str, Any]:
    """The section ``models`` as plain data."""
    section: dict[str, Any] = msgspec.to_builtins(_without_pins(catalog.config), enc_hook=to_plain)
    return section


def _without_pins(models: ModelsConfig) -> ModelsConfig:
    entries = {name: msgspec.structs.replace(entry, pin=False) for name, entry in models.entries.items()}
    return msgspec.structs.replace(models, entries=entries)
