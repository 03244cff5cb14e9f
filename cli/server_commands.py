"""``plimsoll serve``, ``check``, ``reload``, ``version``."""

import logging
from typing import Annotated

import typer

from plimsoll import __version__
from plimsoll.cli.link import AsJson, ConfigFile, Link, with_link
from plimsoll.cli.output import hint, print_json

_log = logging.getLogger("plimsoll.cli")


def add_commands(app: typer.Typer) -> None:
    """Register this module's commands."""
    app.command()(serve)
    app.command()(check)
    app.command()(with_link(reload))
    app.command()(version)


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
) -> None:
    """Start the server."""
    # No other command needs any of these, and they take a third of a second.
    from plimsoll import logs  # noqa: PLC0415
    from plimsoll.catalog import Catalog  # noqa: PLC0415
    from plimsoll.cli import sense  # noqa: PLC0415
    from plimsoll.cli.install import fetch_builtin_model  # noqa: PLC0415
    from plimsoll.cli.settings_file import SettingsFile  # noqa: PLC0415
    from plimsoll.http import server  # noqa: PLC0415
    from plimsoll.journal.places import log_file  # noqa: PLC0415

    settings = SettingsFile(file, host=host, port=port)
    effective = settings.read()
    logs.configure(effective.logging.level, file=log_file(effective.logging.file))
    catalog = Catalog(effective.models)
    for doubt in sense.doubts(effective, catalog):
        _log.warning("%s", doubt)
    # Bind before the fetch: a port in use should not show after a minute.
    with server.bind(effective.server.host, effective.server.port) as sock:
        if not insecure:
            server.refuse_open(effective, sock)
        if effective.models.builtin:
            fetch_builtin_model(effective)
        if not cluster:
            server.serve(effective, catalog, sock, settings.read)
            return
        from plimsoll.cluster.connect import connect  # noqa: PLC0415 - loads Ray

        server.serve(effective, catalog, sock, settings.read, connect(effective))


def check(file: ConfigFile = None, *, as_json: AsJson = False) -> None:
    """Check the configuration and print what is in force."""
    import yaml  # noqa: PLC0415 - as in serve

    from plimsoll import config  # noqa: PLC0415
    from plimsoll.catalog import Catalog  # noqa: PLC0415
    from plimsoll.cli import sense  # noqa: PLC0415

    path = config.find_user_file(file)
    effective = config.load(file)
    catalog = Catalog(effective.models)
    sense.refuse_nonsense(effective)
    doubts, text = sense.doubts(effective, catalog), config.to_yaml(effective)
    if as_json:
        print_json({"file": str(path) if path else None, "doubts": doubts, "config": yaml.safe_load(text)})
        return
    for doubt in doubts:
        hint(f"warning: {doubt}")
    typer.echo(f"# {path or 'defaults; there is no configuration file'}")
    typer.echo(text, nl=False)


def reload(link: Link, *, as_json: AsJson = False) -> None:
    """Have the server read its configuration file again."""
    answer = link.client.post("/admin/reload", {})
    if as_json:
        print_json(answer)
        return
    changed, restart = answer["changed"], answer["needs_restart"]
    typer.echo(f"changed: {', '.join(changed) or 'nothing'}")
    if restart:
        typer.echo(f"in force after a restart only: {', '.join(restart)}")


def version(*, as_json: AsJson = False) -> None:
    """Print the version."""
    print_json({"version": __version__}) if as_json else typer.echo(__version__)
