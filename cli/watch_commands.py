"""``plimsoll events`` and ``top``: what happens, and how things are."""

import sys
from typing import Annotated

import typer

from plimsoll.cli.complete import event_kinds
from plimsoll.cli.link import AsJson, Link, with_link
from plimsoll.cli.output import hint, print_json
from plimsoll.errors import ConfigError


def add_commands(app: typer.Typer) -> None:
    """Register this module's commands."""
    app.command(name="events")(with_link(events))
    app.command(name="top")(with_link(top))


def events(
    link: Link,
    since: Annotated[
        str | None, typer.Option(help="How far back: 30m, 1h, 2d; default: 1h, with --follow from now on.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="Only this kind of event.", autocompletion=event_kinds, metavar="KIND")
    ] = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what happened to memory, also in earlier runs.

    Without --url and --follow this machine's black box is read, and no server is needed.
    """
    from plimsoll.journal import show  # noqa: PLC0415 - the other commands start without it

    try:
        since_s = show.parse_since(since or "1h")
        chosen = show.parse_kind(kind) if kind else None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    count, last = 0, None
    if link.named_url or follow:
        from plimsoll.cli import events as it  # noqa: PLC0415 - as above

        if since or not follow:
            count, last = it.show_history(link.client, since_s, chosen, as_json=as_json)
        if follow:
            it.follow_live(link.client, chosen, last or None, reached=bool(since), as_json=as_json)
    else:
        count = _out_of_the_black_box(link, since_s, chosen, as_json=as_json)
    if not count:
        hint(f"no events in the last {since or '1h'}")


def top(link: Link, *, as_json: AsJson = False) -> None:
    """Watch memory, models and events live; q or Ctrl-C leaves. Without a terminal, one look."""
    from plimsoll.cli import top as it  # noqa: PLC0415 - as above

    if as_json:
        print_json(it.look(link.client).as_json())
    elif sys.stdout.isatty():
        it.watch(link.client)
    else:
        it.print_once(it.look(link.client))


def _out_of_the_black_box(link: Link, since_s: float, kind: str | None, *, as_json: bool) -> int:
    from plimsoll.journal import show  # noqa: PLC0415 - as above
    from plimsoll.journal.places import blackbox_file  # noqa: PLC0415 - as above

    path = blackbox_file(link.config.logging.blackbox)
    if path is None:
        raise ConfigError("logging.blackbox is none, so no events are kept")
    return show.show(path, since_s, as_json=as_json, kind=kind, language=link.config.logging.language)
