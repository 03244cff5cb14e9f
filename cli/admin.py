"""What a running server is asked to do: ``plimsoll ps``, ``load``, ``unload``, ``pin``, ``plan``, ``reload``."""

import contextlib
import queue
import threading
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer

from plimsoll.cli import listing
from plimsoll.cli.client import Client
from plimsoll.cli.complete import model_names
from plimsoll.cli.link import AsJson, Link, with_link
from plimsoll.cli.output import NO, at_terminal, hint, print_json, progress_bar
from plimsoll.errors import PlimsollError
from plimsoll.journal.lines import size

Model = Annotated[str, typer.Argument(help="Its name.", autocompletion=model_names, metavar="MODEL")]
_LIVELESS = ("cold", "stopped")


@with_link
def ps(link: Link, *, as_json: AsJson = False) -> None:
    """List the models that are loaded, loading or leaving."""
    running = [one for one in _all(link.client) if one["state"] not in _LIVELESS]
    if as_json:
        print_json({"models": running})
        return
    typer.echo(listing.ps_table(running))
    if not running:
        hint("(no model is loaded; one is at its first use, or with: plimsoll load MODEL)")


@with_link
def load(
    link: Link,
    model: Model,
    *,
    plan_first: Annotated[bool, typer.Option("--plan", help="Show first what would be evicted, and ask.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Load a model, and wait until it is ready."""
    if plan_first:
        decision = _plan(link.client, model)
        hint(listing.plan_lines(decision))
        if decision["verdict"] in ("refuse", "never"):
            raise typer.Exit(NO)
        if decision["evict"] and at_terminal() and not (yes or typer.confirm("Load it?", err=True)):
            raise typer.Exit(NO)
    body = load_with_progress(link.client, model, _act_path(model, "load"))
    print_json(body) if as_json else typer.echo(listing.loaded_line(body))


@with_link
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
    held = f", {size(before['footprint_bytes'])} are back" if before and before.get("footprint_bytes") else ""
    typer.echo(f"{model} is unloaded{held}")


@with_link
def pin(link: Link, model: Model, *, as_json: AsJson = False) -> None:
    """Keep a model loaded until the server ends: neither idleness nor another model unloads it."""
    body = _act(link.client, model, "pin", {"pinned": True})
    print_json(body) if as_json else typer.echo(f"{model} is pinned ({body['state']})")


@with_link
def unpin(link: Link, model: Model, *, as_json: AsJson = False) -> None:
    """Let a model be unloaded again when it is idle."""
    body = _act(link.client, model, "pin", {"pinned": False})
    print_json(body) if as_json else typer.echo(f"{model} is not pinned any more ({body['state']})")


@with_link
def plan(link: Link, model: Model, *, as_json: AsJson = False) -> None:
    """Say what loading a model would do now, without doing it; exit code 1 if it would be refused."""
    decision = _plan(link.client, model)
    if as_json:
        print_json(decision)
    else:
        typer.echo(listing.plan_lines(decision))
    if decision["verdict"] in ("refuse", "never"):
        raise typer.Exit(NO)


@with_link
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
    typer.echo(listing.cleanup_line(report))


@with_link
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


def _all(client: Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/admin/models")["models"]
    return found


def _plan(client: Client, model: str) -> dict[str, Any]:
    decision: dict[str, Any] = client.get(f"/admin/plan?{urlencode({'model': model})}")
    return decision


def _act(client: Client, model: str, verb: str, body: dict[str, Any]) -> dict[str, Any]:
    # A drain lasts as long as the running answers.
    answer: dict[str, Any] = client.post(_act_path(model, verb), body, timeout_s=None)
    return answer


def _act_path(model: str, verb: str) -> str:
    return f"/admin/models/{quote(model, safe='/:@')}/{verb}"


_LOOK_EVERY_S = 0.25


def load_with_progress(client: Client, name: str, path: str) -> dict[str, Any]:
    """The model's status once it is loaded. The load goes on when this is interrupted. Raises as ``Client`` does."""
    ending: queue.Queue[dict[str, Any] | PlimsollError] = queue.Queue()

    def ask() -> None:
        try:
            # A load has no time limit; the polls below notice a server that is gone.
            ending.put(client.post(path, {}, timeout_s=None))
        except PlimsollError as error:
            ending.put(error)

    threading.Thread(target=ask, daemon=True).start()
    with progress_bar(name) as progress:
        while True:
            with contextlib.suppress(queue.Empty):
                result = ending.get(timeout=_LOOK_EVERY_S)
                break
            _look(client, name, progress)
    if isinstance(result, PlimsollError):
        raise result
    return result


def _look(client: Client, name: str, progress: Any) -> None:
    # It only feeds the bar: what goes wrong here, the load itself tells better.
    with contextlib.suppress(PlimsollError, LookupError):
        for one in client.get("/admin/models", timeout_s=5.0)["models"]:
            if one["name"] == name:
                progress(one["stage"] or "waiting", one["done_bytes"], one["total_bytes"])
