"""The command line. Exit codes: 0 ok, 1 failed, 2 wrong usage, 3 no server reached."""

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from plimsoll import __version__, config, logs
from plimsoll.catalog import Catalog, default_cache_dir
from plimsoll.cli import chat, listing
from plimsoll.cli.client import Client, Unreachable
from plimsoll.config import Config
from plimsoll.errors import ConfigError, PlimsollError
from plimsoll.journal import show
from plimsoll.journal.places import blackbox_file, log_file

_log = logging.getLogger("plimsoll.cli")

app = typer.Typer(
    name="plimsoll",
    help="An MLX API server that does not run out of memory.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
ConfigFile = Annotated[Path | None, typer.Option("--config", help="Configuration file.", metavar="FILE")]
Url = Annotated[
    str | None, typer.Option("--url", envvar="PLIMSOLL_URL", help="The server; default: as the config says.")
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


def main() -> None:
    """Run, with every expected error as one line on stderr."""
    try:
        app()
    except Unreachable as error:
        _fail(error, 3)
    except PlimsollError as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = None,
    file: ConfigFile = None,
) -> None:
    """Start the server."""
    from plimsoll.cli import sense  # noqa: PLC0415 - the same
    from plimsoll.cli.install import fetch_builtin_model  # noqa: PLC0415 - the same
    from plimsoll.http import server  # noqa: PLC0415 - 0.1 s that no other command needs

    effective = config.load(file)
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    effective = msgspec.structs.replace(effective, server=msgspec.structs.replace(effective.server, **given))
    logs.configure(effective.logging.level, file=log_file(effective.logging.file))
    catalog = Catalog(effective.models)
    sense.refuse_nonsense(effective)
    for doubt in sense.doubts(effective, catalog):
        _log.warning("%s", doubt)
    # Bind before the fetch: a port in use should not show after a minute.
    with server.bind(effective.server.host, effective.server.port) as sock:
        if effective.models.builtin:
            fetch_builtin_model(effective)
        server.serve(effective, catalog, sock)


@app.command(name="chat")
def chat_command(
    model: Annotated[str | None, typer.Argument(help="Model; default: the server's first.")] = None,
    prompt: Annotated[str | None, typer.Option("--once", help="Answer this and leave.", metavar="PROMPT")] = None,
    temperature: Annotated[float, typer.Option(help="0 is always the likeliest word.", min=0, max=2)] = 0.3,
    url: Url = None,
    file: ConfigFile = None,
) -> None:
    """Talk with a model; a prompt may also come by a pipe."""
    client = _client(url, file)
    partner = chat.Partner(client, model or chat.pick_model(client), temperature)
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
        if not prompt:
            raise typer.BadParameter("the prompt on stdin is empty")
    if prompt is None:
        chat.converse(partner)
    else:
        chat.once(partner, prompt)


@app.command()
def models(url: Url = None, file: ConfigFile = None) -> None:
    """List the models that the configuration offers."""
    effective = config.load(file)
    states: dict[str, str] = {}
    try:
        states = {one["name"]: one["state"] for one in _running(Client(url or _default_url(effective)))}
    except PlimsollError:
        typer.echo("(no server is running: states are not known)", err=True)
    catalog = Catalog(effective.models)
    typer.echo(listing.models_table(catalog, default_cache_dir(effective), states))


@app.command()
def ps(
    url: Url = None,
    file: ConfigFile = None,
    *,
    as_json: AsJson = False,
) -> None:
    """List the models that are loaded, loading or leaving."""
    running = [one for one in _running(_client(url, file)) if one["state"] not in ("cold", "stopped")]
    typer.echo(json.dumps(running, indent=2) if as_json else listing.ps_table(running))


@app.command()
def cleanup(
    url: Url = None,
    file: ConfigFile = None,
    *,
    aggressive: Annotated[bool, typer.Option("--aggressive", help="Unload ALL models, busy ones too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Unload idle models, the least recently used first, until only the last used one is left."""
    report = _client(url, file).post("/admin/cleanup", {"aggressive": aggressive})
    typer.echo(json.dumps(report, indent=2) if as_json else listing.cleanup_line(report))


@app.command(name="events")
def events_command(
    since: Annotated[str, typer.Option(help="How far back: 30m, 1h, 2d.")] = "1h",
    kind: Annotated[str | None, typer.Option(help="Only this kind of event.")] = None,
    file: ConfigFile = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Show what happened to memory, also in earlier runs; no server is needed."""
    effective = config.load(file)
    path = blackbox_file(effective.logging.blackbox)
    if path is None:
        raise ConfigError("logging.blackbox is none, so no events are kept")
    try:
        since_s, chosen = show.parse_since(since), show.parse_kind(kind) if kind else None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if not show.show(path, since_s, as_json=as_json, kind=chosen, language=effective.logging.language):
        typer.echo(f"no events in the last {since}", err=True)


@app.command()
def check(file: ConfigFile = None) -> None:
    """Check the configuration and print what is in force."""
    from plimsoll.cli import sense  # noqa: PLC0415 - brings the actors

    path = config.find_user_file(file)
    effective = config.load(file)
    catalog = Catalog(effective.models)
    sense.refuse_nonsense(effective)
    for doubt in sense.doubts(effective, catalog):
        typer.echo(f"warning: {doubt}", err=True)
    typer.echo(f"# {path or 'defaults; there is no configuration file'}")
    typer.echo(config.to_yaml(effective), nl=False)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _client(url: str | None, file: Path | None) -> Client:
    return Client(url or _default_url(config.load(file)))


def _default_url(effective: Config) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(effective.server.host, effective.server.host)  # noqa: S104
    return f"http://[{host}]:{effective.server.port}" if ":" in host else f"http://{host}:{effective.server.port}"


def _running(client: Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/admin/models")["models"]
    return found


def _fail(error: PlimsollError, code: int) -> None:
    typer.echo(f"plimsoll: {error.message}", err=True)
    sys.exit(code)
