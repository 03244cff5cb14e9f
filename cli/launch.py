"""``plimsoll launch``: a coding agent, started so that it uses this server, or its own file written so."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from plimsoll.cli.chat import pick_model
from plimsoll.cli.client import Client, Refused
from plimsoll.cli.complete import model_names
from plimsoll.cli.launch_clients import CLIENTS, Launchable, Server, Start
from plimsoll.cli.link import AsJson, Link, with_link
from plimsoll.cli.output import hint, print_json, table

_NO_KEY = "none"
_KEPT = ".before-plimsoll"


@with_link
def launch(
    link: Link,
    client: Annotated[str | None, typer.Argument(help="Which one; left out: all are listed.", metavar="CLIENT")] = None,
    given: Annotated[
        list[str] | None, typer.Argument(help="What the client gets besides, behind a --.", metavar="-- ARGS")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Default: the server's first.", autocompletion=model_names, metavar="MODEL"),
    ] = None,
    *,
    shown: Annotated[bool, typer.Option("--print", help="Show what would be set, and start nothing.")] = False,
    written: Annotated[bool, typer.Option("--write", help="Put it into the client's own file instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start a coding agent with this server as its model, or list those that can be started."""
    if client is None:
        _list(as_json=as_json)
        return
    chosen = _find(client)
    start = chosen.start(_server(link, model))
    if written:
        _write(chosen, start)
    elif shown or as_json:
        _show(chosen, start, given or [], as_json=as_json)
    else:
        _run(chosen, start, given or [])


def _list(*, as_json: bool) -> None:
    places = {one.name: shutil.which(one.program) for one in CLIENTS}
    if as_json:
        told = [{"name": one.name, "title": one.title, "path": places[one.name]} for one in CLIENTS]
        print_json({"clients": told})
        return
    rows = [[one.name, one.title, places[one.name] or f"not installed: {one.install}"] for one in CLIENTS]
    typer.echo(table(["name", "client", "where"], rows))


def _find(name: str) -> Launchable:
    for one in CLIENTS:
        if one.name == name:
            return one
    raise typer.BadParameter(f"there is no client {name!r}; there are {', '.join(one.name for one in CLIENTS)}")


def _server(link: Link, model: str | None) -> Server:
    """The server as the client is to see it. Raises ``Refused`` where it has no such model."""
    client = link.client
    chosen = model or pick_model(client)
    return Server(client.url, client.key or _NO_KEY, chosen, _context(client, chosen))


def _context(client: Client, model: str) -> int | None:
    """The longest conversation that the model accepts, as far as the server can tell."""
    told = client.post("/api/show", {"model": model})["model_info"]
    found = [value for key, value in told.items() if key.endswith(".context_length")]
    return int(found[0]) if found else None


def _show(chosen: Launchable, start: Start, given: list[str], *, as_json: bool) -> None:
    command = [chosen.program, *start.options, *given]
    if as_json:
        print_json({"environment": start.environment, "command": command, "file": str(start.own_file or start.file)})
        return
    if start.own_file:
        text = shlex.quote(json.dumps(start.content))
        typer.echo(f"mkdir -p {shlex.quote(str(start.own_file.parent))}")
        typer.echo(f"echo {text} > {shlex.quote(str(start.own_file))}")
    for name, value in start.environment.items():
        typer.echo(f"export {name}={shlex.quote(value)}")
    typer.echo(shlex.join(command))


def _run(chosen: Launchable, start: Start, given: list[str]) -> None:
    """Start it and leave with its exit code. Raises ``Refused`` where it is not installed."""
    program = shutil.which(chosen.program)
    if program is None:
        raise Refused(f"{chosen.title} is not installed: {chosen.install}")
    if start.own_file:
        start.own_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        start.own_file.touch(mode=0o600)  # it holds the key
        start.own_file.write_text(json.dumps(start.content), encoding="utf-8")
    done = subprocess.run([program, *start.options, *given], env=os.environ | start.environment, check=False)  # noqa: S603 - what the user named
    sys.exit(done.returncode)


def _write(chosen: Launchable, start: Start) -> None:
    """Put it into the client's file, whose old content stays beside it. Raises ``Refused`` where that can't be done."""
    old = start.file.read_text(encoding="utf-8") if start.file.exists() else ""
    new = _merged(start, old)
    start.file.parent.mkdir(parents=True, exist_ok=True)
    if old:
        Path(f"{start.file}{_KEPT}").write_text(old, encoding="utf-8")
    start.file.write_text(new, encoding="utf-8")
    kept = f"; what it held is in {start.file.name}{_KEPT}" if old else ""
    hint(f"{start.file} tells {chosen.title} of this server{kept}. Start it with: {start.then}")


def _merged(start: Start, old: str) -> str:
    if isinstance(start.content, str):
        first = start.content.strip().splitlines()[0]
        if first in old.splitlines():
            raise Refused(f"{start.file} has {first} already: change it there, or take it out first")
        return f"{old.rstrip()}\n{start.content}" if old.strip() else start.content.lstrip()
    try:
        before = json.loads(old) if old.strip() else {}
    except ValueError as error:
        raise Refused(f"{start.file} is no plain JSON ({error}): put this into it by hand: {start.content}") from None
    return json.dumps(_over(before, start.content), indent=2, ensure_ascii=False) + "\n"


def _over(before: Any, new: Any) -> Any:
    """``new`` over ``before``: objects key by key, everything else in its place."""
    if isinstance(before, dict) and isinstance(new, dict):
        return {**before, **{key: _over(before.get(key), value) for key, value in new.items()}}
    return new
