"""``plimsoll pull``: a model's files, by a running server or, where there is none, by a process of our own."""

import contextlib
import ipaddress
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plimsoll.catalog import Catalog, child, default_cache_dir, installed
from plimsoll.catalog.ahead import look_ahead
from plimsoll.cli import sense
from plimsoll.cli.client import Client, Refused, Unreachable
from plimsoll.cli.link import Link
from plimsoll.cli.output import hint
from plimsoll.errors import LoadFailed, NeverFits, UnknownModel
from plimsoll.journal.lines import size

_PROBE_S = 5.0
# What a full disk does to everything else is worse than a refused download.
_SPARE_BYTES = 512 * 1024**2


def steps(link: Link, name: str, *, force: bool) -> Iterator[dict[str, Any]]:
    """Fetch ``name`` and say how far it is, in the lines of ``POST /api/pull``; the last one is a success.

    Raises as ``Client`` does, ``LoadFailed`` and ``UnknownModel``, and ``NeverFits`` unless ``force`` is given.
    """
    client = _server(link)
    if client is None or _is_here(client.host):
        try:
            if not _worth_it(link, name, force=force):
                yield {"status": "success"}
                return
        except UnknownModel:
            if client is None:
                raise  # a server may run with another configuration
    lines = _by_server(client, name) if client else _by_ourselves(link, name)
    with contextlib.closing(lines):  # type: ignore[type-var] # it is a generator
        for line in lines:
            step = json.loads(line)
            if error := step.get("error"):
                raise Refused(str(error["message"] if isinstance(error, dict) else error))
            yield step
            if step.get("status") == "success":
                return
    raise Unreachable(f"the pull of {name} broke off; the same command goes on where it ended")


def _server(link: Link) -> Client | None:
    try:
        link.client.get("/health/live", timeout_s=_PROBE_S)
    except Unreachable:
        # Who named a server wants that one.
        if link.named_url:
            raise
        return None
    return link.client


def _by_server(client: Client, name: str) -> Iterator[str]:
    return (line for line in client.lines("POST", "/api/pull", {"model": name}) if line)


def _by_ourselves(link: Link, name: str) -> Iterator[str]:
    file = [str(link.file)] if link.file else []
    try:
        yield from child.lines("plimsoll.catalog.pull", name, *file)
    except OSError as error:
        raise LoadFailed(f"the pull of {name} failed: {error}") from None


def _worth_it(link: Link, name: str, *, force: bool) -> bool:
    """Whether there is anything to fetch. Raises where it would not fit on the disk or never into memory."""
    catalog, cache_dir = Catalog(link.config.models), default_cache_dir(link.config)
    model = catalog.find(name)
    if installed(model.source, cache_dir) and model.source.kind != "gguf":
        return False
    ahead = None if link.config.models.offline else look_ahead(model.source, cache_dir)
    if ahead is None:
        return True
    free = shutil.disk_usage(existing(Path(ahead.folder))).free
    known = [f"{size(ahead.download_bytes)} to fetch", f"{size(free)} are free in {ahead.folder}"]
    wrong = ""
    if ahead.disk_bytes + _SPARE_BYTES > free:
        wrong = f"{name} takes {size(ahead.disk_bytes)} of disk space and {size(free)} are free in {ahead.folder}"
    if ahead.weight:
        least, budget = sense.least_bytes(link.config, catalog, model, ahead.weight), sense.budget_bytes(link.config)
        known.append(f"needs {size(least)} of memory, models may take {size(budget)}")
        if least > budget:
            limit = sense.budget_key(link.config)
            wrong = f"{name} can never be loaded here: it needs {size(least)}, {limit} lets models take {size(budget)}"
    if wrong and not force:
        raise NeverFits(f"{wrong}; nothing was fetched ({size(ahead.download_bytes)}), --force does it all the same")
    hint(f"{name}: {'; '.join(known)}")
    return True


def existing(path: Path) -> Path:
    """``path``, or the nearest folder above it that is there."""
    return next(one for one in (path, *path.parents) if one.exists())


def _is_here(host: str) -> bool:
    """Whether the server's disk and memory are this machine's."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
