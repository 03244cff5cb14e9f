"""Model names -> files on disk: found, fetched, converted, weighed. Nothing here knows mlx.

Each name is imported when it is first asked for: a worker needs only some modules of this folder, and all that these
import would be a third of its start.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plimsoll.catalog.entries import CatalogModel
    from plimsoll.catalog.fetch import resolve
    from plimsoll.catalog.installed import default_cache_dir, place, size_bytes
    from plimsoll.catalog.names import Catalog
    from plimsoll.catalog.source import BUILTIN, BUILTIN_EMBEDDING

__all__ = [
    "BUILTIN",
    "BUILTIN_EMBEDDING",
    "Catalog",
    "CatalogModel",
    "default_cache_dir",
    "place",
    "resolve",
    "size_bytes",
]

_HOMES = {
    "BUILTIN": "source",
    "BUILTIN_EMBEDDING": "source",
    "Catalog": "names",
    "CatalogModel": "entries",
    "default_cache_dir": "installed",
    "place": "installed",
    "resolve": "fetch",
    "size_bytes": "installed",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"plimsoll.catalog.{_HOMES[name]}"), name)
