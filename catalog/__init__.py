"""Model names -> files on disk: found, fetched, converted, weighed. Nothing here knows mlx."""

from plimsoll.catalog.fetch import resolve
from plimsoll.catalog.names import (
    BUILTIN,
    BUILTIN_EMBEDDING,
    Catalog,
    CatalogModel,
    default_cache_dir,
    installed,
    size_bytes,
)

__all__ = [
    "BUILTIN",
    "BUILTIN_EMBEDDING",
    "Catalog",
    "CatalogModel",
    "default_cache_dir",
    "installed",
    "resolve",
    "size_bytes",
]
