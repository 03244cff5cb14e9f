"""What the configuration offers, and what of it is on the disk."""

from pathlib import Path
from typing import Any

from plimsoll.catalog import Catalog, installed, size_bytes


def offer(catalog: Catalog, cache_dir: Path, states: dict[str, str]) -> list[dict[str, Any]]:
    """Name, kind, size, installed, state of every model offered; the state is None where no server says it."""
    rows = []
    for name in catalog.names():
        source = catalog.find(name).source
        there = installed(source, cache_dir)
        weights = size_bytes(source, cache_dir)
        row = {"name": name, "kind": source.kind, "size_bytes": weights, "installed": there}
        rows.append({**row, "state": states.get(name)})
    return rows
