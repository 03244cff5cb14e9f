"""Model names -> files on disk: found, fetched, converted, weighed. Nothing here knows mlx."""

from plimsoll.catalog.entries import CatalogModel
from plimsoll.catalog.fetch import resolve
from plimsoll.catalog.installed import default_cache_dir, installed, place, size_bytes
from plimsoll.catalog.names import Catalog
from plimsoll.catalog.source import BUILTIN, BUILTIN_EMBEDDING

__all__ = [
    "BUILTIN",
    "BUILTIN_EMBEDDING",
    "Catalog",
    "CatalogModel",
    "default_cache_dir",
    "installed",
    "place",
    "resolve",
    "size_bytes",
]
