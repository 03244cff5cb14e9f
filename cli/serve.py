"""``plimsoll serve``: the server, with the built-in model fetched and the command line over the user's file."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from plimsoll import config, config_file, logs
from plimsoll.catalog.fetch import resolve
from plimsoll.catalog.installed import default_cache_dir, installed
from plimsoll.catalog.names import Catalog
from plimsoll.catalog.source import BUILTIN
from plimsoll.cli import config_checks
from plimsoll.cli.link import ConfigFile
from plimsoll.cli.output import progress_bar
from plimsoll.config import Config
from plimsoll.errors import PlimsollError
from plimsoll.http import server
from plimsoll.journal.store import log_file

_log = logging.getLogger("plimsoll.cli")


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = None,
    file: ConfigFile = None,
    *,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let other machines use and administer it without a key.")
    ] = False,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Serve with every node of the Ray cluster that this machine is in.")
    ] = False,
    end_with_parent: Annotated[
        bool, typer.Option("--end-with-parent", help="Stop when the process that started the server has ended.")
    ] = False,
) -> None:
    """Start the server."""
    from plimsoll.cli.doctor import listener  # noqa: PLC0415 - needed only where the port is in use

    parent = os.getppid() if end_with_parent else None
    settings = SettingsFile(file, host=host, port=port)
    effective = settings.read()
    logs.configure(effective.logging.level, file=log_file(effective.logging.file))
    catalog = Catalog(effective.models)
    for doubt in config_checks.doubts(effective, catalog):
        _log.warning("%s", doubt)
    # Bind before the fetch: a port in use should not show after a minute.
    with server.bind(effective.server.host, effective.server.port, listener) as sock:
        if not insecure:
            server.refuse_open(effective, sock)
        if effective.models.builtin:
            fetch_builtin_model(effective)
        if not cluster:
            server.serve(effective, catalog, sock, settings, parent=parent)
            return
        from plimsoll.cluster.system import connect  # noqa: PLC0415 - most servers have no cluster

        server.serve(effective, catalog, sock, settings, connect(effective), parent=parent)


def fetch_builtin_model(config: Config) -> None:
    """Fetch and convert it if it is not there. A failure is logged: the server is of use without it."""
    cache_dir = default_cache_dir(config)
    if installed(BUILTIN, cache_dir):
        return
    _log.info("fetching the built-in model %s (93 MB, once) into %s", BUILTIN.name, cache_dir)
    try:
        with progress_bar(BUILTIN.name) as progress:
            resolve(BUILTIN, cache_dir=cache_dir, offline=config.models.offline, progress=progress)
    except (PlimsollError, OSError) as error:
        _log.warning("the built-in model could not be fetched: %s", error)


class SettingsFile:
    """The user's file and what the command line overrides of it."""

    def __init__(self, file: Path | None, **server: Any) -> None:
        """``server`` holds the options that were given, and None for those that were not."""
        self._path = file
        self._overrides = {name: value for name, value in server.items() if value is not None}

    def read(self) -> Config:
        """What the file says now. Raises ``ConfigError``, also for a file that was there before and is not any more."""
        found = config.find_user_file(self._path)
        effective = config.load(found)
        effective = msgspec.structs.replace(
            effective, server=msgspec.structs.replace(effective.server, **self._overrides)
        )
        config_checks.refuse_nonsense(effective)
        # From now on this one: while an editor replaces it, no other and no default may take its place.
        self._path = found.absolute() if found else None
        return effective

    def change(self, changes: Sequence[config_file.Change]) -> None:
        """Change keys of the user's file, which is made if there is none."""
        config_file.change(self._path or config.default_user_file(), changes)
