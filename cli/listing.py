"""Tables for the terminal."""

from pathlib import Path
from typing import Any

from plimsoll.catalog import Catalog, installed, size_bytes

_HOUR_S = 3600
_MINUTE_S = 60


def models_table(catalog: Catalog, cache_dir: Path, states: dict[str, str]) -> str:
    """Name, kind, size, installed, state of every model offered."""
    rows = []
    for name in catalog.names():
        source = catalog.find(name).source
        size = size_bytes(source, cache_dir)
        there = "yes" if installed(source, cache_dir) else "no"
        rows.append([name, source.kind, "-" if size is None else _size(size), there, states.get(name, "-")])
    return table(["NAME", "KIND", "SIZE", "INSTALLED", "STATE"], rows)


def ps_table(running: list[dict[str, Any]]) -> str:
    """The models of ``GET /admin/models`` that have a life."""
    rows = [
        [
            one["name"],
            one["state"],
            str(one["active"]),
            str(one["queued"]),
            str(one["pid"] or "-"),
            "-" if one["idle_s"] is None else f"{_time(one['idle_s'])} ago",
            "never" if one["pinned"] else "-" if one["unload_in_s"] is None else f"in {_time(one['unload_in_s'])}",
        ]
        for one in running
    ]
    return table(["NAME", "STATE", "ACTIVE", "QUEUED", "PID", "LAST USED", "UNLOADS"], rows)


def cleanup_line(report: dict[str, Any]) -> str:
    """What a clean-up did, in one line."""
    names = ", ".join(report["unloaded"]) or "nothing"
    freed, expected = _size(max(0, report["freed_bytes"])), _size(report["expected_bytes"])
    before, after = report["percent_before"], report["percent_after"]
    return f"unloaded {names}: freed {freed} of {expected}, memory {before}% -> {after}%"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as they must be."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _time(seconds: float) -> str:
    if seconds >= _HOUR_S:
        return f"{seconds / _HOUR_S:.1f} h"
    return f"{seconds / _MINUTE_S:.0f} min" if seconds >= _MINUTE_S else f"{seconds:.0f} s"
