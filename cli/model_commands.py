"""``plimsoll models``, ``ps``, ``load``, ``unload``, ``pin``, ``unpin``, ``plan``, ``cleanup``."""

from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer

from plimsoll.cli.client import Client, Unauthorised
from plimsoll.cli.complete import model_names
from plimsoll.cli.link import AsJson, Link, with_link
from plimsoll.cli.output import NO, at_terminal, hint, print_json
from plimsoll.errors import PlimsollError

Model = Annotated[str, typer.Argument(help="Its name.", autocompletion=model_names, metavar="MODEL")]
_LIVELESS = ("cold", "stopped")


def add_commands(app: typer.Typer) -> None:
    """Register this module's commands."""
    for command in (models, ps, load, unload, pin, unpin, plan, cleanup):
        app.command()(with_link(command))


def models(link: Link, *, as_json: AsJson = False) -> None:
    """List the models that the configuration offers."""
    from plimsoll.catalog import Catalog, default_cache_dir  # noqa: PLC0415 - ps starts without them
    from plimsoll.cli import listing  # noqa: PLC0415 - as above
    from plimsoll.cli.offer import offer  # noqa: PLC0415 - as above

    effective = link.config
    catalog = Catalog(effective.models)
    states: dict[str, str] = {}
    try:
        states = {one["name"]: one["state"] for one in _all(link.client)}
    except PlimsollError as error:
        hint(f"(states are not known: {error.message if isinstance(error, Unauthorised) else 'no server is running'})")
    rows = offer(catalog, default_cache_dir(effective), states)
    print_json({"models": rows}) if as_json else typer.echo(listing.models_table(rows))


def ps(link: Link, *, as_json: AsJson = False) -> None:
    """List the models that are loaded, loading or leaving."""
    running = [one for one in _all(link.client) if one["state"] not in _LIVELESS]
    if as_json:
        print_json({"models": running})
        return
    from plimsoll.cli import listing  # noqa: PLC0415 - as above

    typer.echo(listing.ps_table(running))
    if not running:
        hint("(no model is loaded; one is at its first use, or with: plimsoll load MODEL)")


def load(
    link: Link,
    model: Model,
    *,
    plan_first: Annotated[bool, typer.Option("--plan", help="Show first what would be evicted, and ask.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Load a model, and wait until it is ready."""
    from plimsoll.cli import listing  # noqa: PLC0415 - as above
    from plimsoll.cli.load import load_with_progress  # noqa: PLC0415 - as above

    if plan_first:
        decision = _plan(link.client, model)
        hint(listing.plan_lines(decision))
        if decision["verdict"] in ("refuse", "never"):
            raise typer.Exit(NO)
        if decision["evict"] and at_terminal() and not (yes or typer.confirm("Load it?", err=True)):
            raise typer.Exit(NO)
    body = load_with_progress(link.client, model, _act_path(model, "load"))
    print_json(body) if as_json else typer.echo(listing.loaded_line(body))


def unload(
    link: Link,
    model: Model,
    grace: Annotated[
        float | None, typer.Option(help="Seconds that running answers get; default: memory.critical_grace.", min=0)
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Unload a model, and wait until its memory is back."""
    before = next((one for one in _all(link.client) if one["name"] == model), None)
    body = _act(link.client, model, "unload", {} if grace is None else {"grace_s": grace})
    if as_json:
        print_json(body)
        return
    if before and before["state"] in _LIVELESS:
        typer.echo(f"{model} was not loaded")
        return
    from plimsoll.journal.lines import size  # noqa: PLC0415 - as above

    held = f", {size(before['footprint_bytes'])} are back" if before and before.get("footprint_bytes") else ""
    typer.echo(f"{model} is unloaded{held}")


def pin(link: Link, model: Model, *, as_json: AsJson = False) -> None:
    """Keep a model loaded: it is never unloaded for being idle or to make room, until the server ends."""
    body = _act(link.client, model, "pin", {"pinned": True})
    print_json(body) if as_json else typer.echo(f"{model} is pinned ({body['state']})")


def unpin(link: Link, model: Model, *, as_json: AsJson = False) -> None:
    """Let a model be unloaded again when it is idle."""
    body = _act(link.client, model, "pin", {"pinned": False})
    print_json(body) if as_json else typer.echo(f"{model} is not pinned any more ({body['state']})")


def plan(link: Link, model: Model, *, as_json: AsJson = False) -> None:
    """Say what loading a model would do now, without doing it; exit code 1 if it would be refused."""
    decision = _plan(link.client, model)
    if as_json:
        print_json(decision)
    else:
        from plimsoll.cli import listing  # noqa: PLC0415 - as above

        typer.echo(listing.plan_lines(decision))
    if decision["verdict"] in ("refuse", "never"):
        raise typer.Exit(NO)


def cleanup(
    link: Link,
    *,
    aggressive: Annotated[bool, typer.Option("--aggressive", help="Unload ALL models, busy ones too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Unload idle models, the least recently used first, until only the last used one is left."""
    report = link.client.post("/admin/cleanup", {"aggressive": aggressive})
    if as_json:
        print_json(report)
        return
    from plimsoll.cli import listing  # noqa: PLC0415 - as above

    typer.echo(listing.cleanup_line(report))


def _all(client: Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/admin/models")["models"]
    return found


def _plan(client: Client, model: str) -> dict[str, Any]:
    decision: dict[str, Any] = client.get(f"/admin/plan?{urlencode({'model': model})}")
    return decision


def _act(client: Client, model: str, verb: str, body: dict[str, Any]) -> dict[str, Any]:
    # A drain takes what the answers take that it lets end.
    answer: dict[str, Any] = client.post(_act_path(model, verb), body, timeout_s=None)
    return answer


def _act_path(model: str, verb: str) -> str:
    return f"/admin/models/{quote(model, safe='/:@')}/{verb}"
