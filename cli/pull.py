"""``plimsoll pull``: a model's files, fetched by the running server or by this command itself."""

import contextlib
import ipaddress
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from plimsoll.catalog import child_process
from plimsoll.catalog.fetch_preview import look_ahead
from plimsoll.catalog.installed import default_cache_dir, installed
from plimsoll.catalog.names import Catalog
from plimsoll.cli import config_checks
from plimsoll.cli.client import Client, Refused, Unreachable
from plimsoll.cli.complete import model_names
from plimsoll.cli.link import AsJson, Link, with_link
from plimsoll.cli.machine_checks import existing
from plimsoll.cli.output import hint, print_json_line, progress_bar
from plimsoll.errors import LoadFailed, NeverFits, UnknownModel
from plimsoll.journal.lines import size

_PROBE_S = 5.0
# What a full disk does to everything else is worse than a refused download.
_SPARE_BYTES = 512 * 1024**2


@with_link
def pull(
    link: Link,
    model: Annotated[str, typer.Argument(help="Its name.", autocompletion=model_names, metavar="MODEL")],
    *,
    force: Annotated[bool, typer.Option("--force", help="Fetch what does not fit, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch a model's files; an interrupted pull goes on where it ended."""
    lines = steps(link, model, force=force)
    if as_json:
        for step in lines:
            print_json_line(step)
        return
    with progress_bar(model) as progress:
        for step in lines:
            progress(step["status"], step.get("completed", 0), step.get("total", 0))
    typer.echo(f"{model} is here")


def steps(link: Link, name: str, *, force: bool) -> Iterator[dict[str, Any]]:
    """Fetch ``name`` and say how far it is, in the lines of ``POST /api/pull``; the last one is a success.

    Raises as ``Client`` does, ``LoadFailed`` and ``UnknownModel``, and ``NeverFits`` unless ``force`` is given.
    """
    client = _server(link)
    if client is None or is_this_machine(client.host):
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
        yield from child_process.lines("plimsoll.catalog.pull", name, *file)
    except OSError as error:
        raise LoadFailed(f"the pull of {name} failed: {error}") from None


def _worth_it(link: Link, name: str, *, force: bool) -> bool:
    """Whether there is anything to fetch. Raises where it would not fit on the disk or never into memory."""
    catalog, cache_dir = Catalog(link.config.models), default_cache_dir(link.config)
    model = catalog.fetchable(name)
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
        least, budget = (
            config_checks.least_bytes(link.config, model, ahead.weight),
            config_checks.budget_bytes(link.config),
        )
        known.append(f"needs {size(least)} of memory, models may take {size(budget)}")
        if least > budget:
            limit = config_checks.budget_key(link.config)
            wrong = f"{name} can never be loaded here: it needs {size(least)}, {limit} lets models take {size(budget)}"
    if wrong and not force:
        raise NeverFits(f"{wrong}; nothing was fetched ({size(ahead.download_bytes)}), --force does it all the same")
    hint(f"{name}: {'; '.join(known)}")
    return True


def is_this_machine(host: str) -> bool:
    """Whether the server's disk and memory are this machine's."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
