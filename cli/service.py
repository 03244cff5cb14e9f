"""``plimsoll service``: have launchd or systemd run the server for this user."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from plimsoll.cli.link import AsJson, ConfigFile
from plimsoll.cli.output import NO_SERVER, hint, print_json

if TYPE_CHECKING:
    from plimsoll.cli.service_files import Service
    from plimsoll.cli.service_managers import Manager

service = typer.Typer(help="Have launchd or systemd run the server for this user.", no_args_is_help=True)
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be written, and do nothing.")]


@service.command()
def install(file: ConfigFile = None, *, dry_run: DryRun = False) -> None:
    """Write the service's file, start it now and at every login."""
    chosen, service = manager(), describe(file)
    if dry_run:
        typer.echo(f"# {chosen.path}")
        typer.echo(chosen.text(service), nl=False)
        return
    if chosen.install(service):
        typer.echo(f"installed and started: {chosen.path}")
    else:
        typer.echo(f"already installed and running: {chosen.path}")
    if sys.platform == "linux":
        hint("it ends with your last session unless you allow it to stay: loginctl enable-linger")


@service.command()
def uninstall(*, dry_run: DryRun = False) -> None:
    """Stop the service and remove its file. Configuration, models and logs stay."""
    chosen = manager()
    if dry_run:
        typer.echo(f"would stop it and remove {chosen.path}" if chosen.path.exists() else "nothing is installed")
        return
    typer.echo(f"stopped and removed: {chosen.path}" if chosen.uninstall() else "nothing is installed")


@service.command()
def status(file: ConfigFile = None, *, as_json: AsJson = False) -> None:
    """Say whether it is installed and runs; exit code 3 if it does not."""
    found = manager().status(describe(file))
    if as_json:
        print_json(msgspec.structs.asdict(found))
    else:
        typer.echo(f"file     {found.path}{'' if found.installed else ' (not there)'}")
        typer.echo(f"service  {found.state}{f', pid {found.pid}' if found.pid else ''}")
        if found.installed and not found.current:
            hint("the file is not what would be written now: plimsoll service install brings it up to date")
    if not found.running:
        raise typer.Exit(NO_SERVER)


def describe(file: Path | None) -> "Service":
    """The installation that runs right now: this interpreter, this configuration. Raises ``ConfigError``."""
    from plimsoll import config  # noqa: PLC0415 - the other commands start without it
    from plimsoll.actors.system import STOP_MARGIN_S  # noqa: PLC0415
    from plimsoll.cli.service_files import Service, stop_seconds  # noqa: PLC0415
    from plimsoll.journal.store import log_file  # noqa: PLC0415

    path = config.find_user_file(file)
    effective = config.load(path)
    log = log_file(effective.logging.file) or log_file(None)
    assert log is not None  # noqa: S101 - null is a place
    return Service(
        # Not resolved: a virtual environment's interpreter is a link out of it.
        python=Path(sys.executable).absolute(),
        config=path.absolute() if path else None,
        errors=log.absolute().with_name("plimsoll.stderr.log"),
        stop_s=stop_seconds(effective.server.shutdown_grace, STOP_MARGIN_S),
    )


def manager() -> "Manager":
    """The service manager of this system. Raises ``ServiceFailed`` where there is none that is known."""
    from plimsoll.cli.service_managers import Launchd, ServiceFailed, Systemd  # noqa: PLC0415

    if sys.platform == "darwin":
        return Launchd(Path.home(), os.getuid())
    if sys.platform == "linux":
        return Systemd(Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser())
    raise ServiceFailed(f"there is no service manager that Plimsoll knows on {sys.platform}")
