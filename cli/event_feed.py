"""``plimsoll events``, and the feed of the server's live events (GET /admin/events) over its restarts."""

import contextlib
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlencode

import typer

from plimsoll.cli.client import Client, Refused, Unauthorised, Unreachable
from plimsoll.cli.complete import event_kinds
from plimsoll.cli.link import AsJson, Link, with_link
from plimsoll.cli.output import hint, print_json_line
from plimsoll.errors import ConfigError
from plimsoll.journal import show
from plimsoll.journal.lines import local_time
from plimsoll.journal.store import blackbox_file

_AGAIN_S = 1.0
# The server breaks its silence every server.keepalive, 5 s unless it was changed.
_SILENCE_S = 60.0


@with_link
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
    try:
        since_s = show.parse_since(since or "1h")
        chosen = show.parse_kind(kind) if kind else None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    count, last = 0, None
    if link.named_url or follow:
        if since or not follow:
            count, last = show_history(link.client, since_s, chosen, as_json=as_json)
        if follow:
            follow_live(link.client, chosen, last or None, reached=bool(since), as_json=as_json)
    else:
        count = _out_of_the_black_box(link, since_s, chosen, as_json=as_json)
    if not count:
        hint(f"no events in the last {since or '1h'}")


def _out_of_the_black_box(link: Link, since_s: float, kind: str | None, *, as_json: bool) -> int:
    path = blackbox_file(link.config.logging.blackbox)
    if path is None:
        raise ConfigError("logging.blackbox is none, so no events are kept")
    return show.show(path, since_s, as_json=as_json, kind=kind, language=link.config.logging.language)


class Heard(NamedTuple):
    """One event: ``kind`` is hello, sample, models or journal."""

    kind: str
    data: dict[str, Any]


class Lost(NamedTuple):
    """The server is gone; it is asked for again every second."""

    reason: str


def follow(client: Client, *only: str, after: int | None = None, reached: bool = False) -> Iterator[Heard | Lost]:
    """Every event of these kinds from now on; rows of the journal also from the one behind ``after`` on.

    Raises what ``Client`` raises while the server was never reached (``reached`` says that it was before), and
    ``Unauthorised`` at any time.
    """
    while True:
        try:
            for heard in _listen(client, only, after):
                reached = True
                if heard.kind == "journal":
                    after = heard.data["id"]
                elif heard.kind == "hello":
                    # What comes while the next connection is made is then not missed.
                    after = heard.data["last_event"] if after is None else after
                yield heard
            reason = "it ended the connection"
        except (Unreachable, Refused) as error:
            if not reached or isinstance(error, Unauthorised):
                raise
            reason = error.message
        yield Lost(reason)
        time.sleep(_AGAIN_S)


def _listen(client: Client, only: tuple[str, ...], after: int | None) -> Iterator[Heard]:
    asked = {"only": ",".join(only)} | ({} if after is None else {"after": str(after)})
    lines = client.lines("GET", f"/admin/events?{urlencode(asked)}", silence_s=_SILENCE_S)
    with contextlib.closing(lines):  # type: ignore[type-var] # it is a generator
        kind, data = "", ""
        for line in lines:
            field, _, value = line.partition(":")
            if field == "event":
                kind = value.strip()
            elif field == "data":
                data += value.strip()
            elif not line and data:
                yield Heard(kind, json.loads(data))
                kind, data = "", ""


_MOST_EVENTS = "10000"  # what the server gives at once


def show_history(client: Client, since_s: float, kind: str | None, *, as_json: bool) -> tuple[int, int]:
    """Print the server's events of the last ``since_s`` seconds; their count and the last one's id come back."""
    asked = {"since": str(float(since_s)), "points": _MOST_EVENTS} | ({"kind": kind} if kind else {})
    found = client.get(f"/admin/history?{urlencode(asked)}")["events"]
    for row in found:
        _print(row, as_json=as_json)
    return len(found), max((row["id"] for row in found), default=0)


def follow_live(client: Client, kind: str | None, after: int | None, *, reached: bool, as_json: bool) -> None:
    """Print events as they come, until Ctrl-C; a server that was ``reached`` is waited for when it restarts."""
    lost = False
    for item in follow(client, "journal", after=after, reached=reached):
        if isinstance(item, Lost):
            if not lost:
                hint(f"(the server is gone, waiting for it: {item.reason})")
            lost = True
        elif item.kind == "hello":
            if lost:
                hint("(the server is back)")
            lost = False
        elif item.kind == "journal" and kind in (None, item.data["kind"]):
            _print(item.data, as_json=as_json)


def _print(row: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        # The keys that the black box's events have, so that one program reads both.
        at = datetime.fromtimestamp(row["at"], UTC).isoformat(timespec="milliseconds")
        print_json_line({"time": at, "kind": row["kind"], **row["event"]})
    else:
        typer.echo(f"{local_time(row['at'])}  {row['kind']:<17} {row['text']}")
