"""``plimsoll events``: out of the black box, or from a server and then as they come."""

from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import typer

from plimsoll.cli.client import Client
from plimsoll.cli.feed import Lost, follow
from plimsoll.cli.output import hint, print_json_line
from plimsoll.journal.lines import local_time

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
