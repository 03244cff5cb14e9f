"""``plimsoll requests``: the newest requests as a table, one of them as a waterfall, the tokens of the last days."""

import time
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer

from plimsoll.cli.complete import model_names
from plimsoll.cli.link import AsJson, Link, with_link
from plimsoll.cli.output import hint, print_json, table

_ID_CHARS = 8
_BAR_CHARS = 40
_LEAST_SHOWN_S = 0.0005


@with_link
def requests(
    link: Link,
    request_id: Annotated[str, typer.Argument(help="Show where the time of this one went.", metavar="[ID]")] = "",
    *,
    model: Annotated[str | None, typer.Option(help="Only this model's.", autocompletion=model_names)] = None,
    key: Annotated[str | None, typer.Option(help="Only those with the API key of this name.")] = None,
    outcome: Annotated[
        str | None, typer.Option(help="Only those that ended so: stop, length, tool_calls, cancelled, failed.")
    ] = None,
    limit: Annotated[int, typer.Option(help="How many.", min=1, max=1000)] = 20,
    days: Annotated[int, typer.Option(help="With --tokens: of how many days.", min=1, max=366)] = 7,
    tokens: Annotated[bool, typer.Option("--tokens", help="The tokens per day, model and key instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the newest requests that have ended: who asked what, how many tokens, where the time went."""
    if request_id:
        told = link.client.get(f"/admin/requests/{quote(request_id, safe='')}")
        print_json(told) if as_json else typer.echo(waterfall(told))
        return
    if tokens:
        told = link.client.get(f"/admin/tokens?days={days}")
        print_json(told) if as_json else typer.echo(tokens_table(told["days"]))
        return
    filters = {"model": model, "key": key, "outcome": outcome, "limit": limit}
    told = link.client.get(f"/admin/requests?{urlencode({name: one for name, one in filters.items() if one})}")
    if as_json:
        print_json(told)
        return
    typer.echo(requests_table(told["requests"]))
    if not told["requests"]:
        hint("(no request has ended since the server started, or none is like that)")


def requests_table(rows: list[dict[str, Any]]) -> str:
    """The rows of ``GET /admin/requests``."""
    cells = [
        [
            row["id"][:_ID_CHARS],
            time.strftime("%H:%M:%S", time.localtime(row["ended_at"])),
            row["key"] or "-",
            row["model"],
            str(row["prompt_tokens"]),
            str(row["reused_tokens"]),
            str(row["completion_tokens"]),
            "-" if row["first_token_s"] is None else _seconds(row["first_token_s"]),
            _seconds(row["seconds"]),
            row["outcome"],
        ]
        for row in rows
    ]
    head = ["ID", "ENDED", "KEY", "MODEL", "IN", "REUSED", "OUT", "FIRST", "TIME", "ENDING"]
    return table(head, cells, right="IN,REUSED,OUT,FIRST,TIME")


def tokens_table(rows: list[dict[str, Any]]) -> str:
    """The rows of ``GET /admin/tokens``."""
    names = ("requests", "prompt", "reused", "completion")
    cells = [[row["day"], row["model"], row["key"] or "-", *(f"{row[name]:,}" for name in names)] for row in rows]
    return table(["DAY", "MODEL", "KEY", "REQUESTS", "IN", "REUSED", "OUT"], cells, right="REQUESTS,IN,REUSED,OUT")


def waterfall(told: dict[str, Any]) -> str:
    """One request: what it was, and a bar for each stretch of its time."""
    key = f"  key {told['key']}" if told["key"] else ""
    place = f" from {told['reused_from']}" if told["reused_from"] else ""
    reused = f"{told['reused_tokens']} of them reused{place}"
    head = [
        f"{told['id']}  {told['api']}  {told['model']}{key}",
        f"{told['prompt_tokens']} tokens in, {reused}, {told['completion_tokens']} out",
        f"ended: {told['outcome']}{', ' + told['why'] if told['why'] else ''}",
    ]
    decode_s = told["stages_s"]["decode"]
    if decode_s and told["completion_tokens"] > 1:
        head[1] += f" at {(told['completion_tokens'] - 1) / decode_s:.1f} tokens/s"
    whole_s = max(told["seconds"], 1e-9)
    bars = [_bar(stage, start_s, length_s, whole_s) for stage, start_s, length_s in told["spans"]]
    texts = told.get("texts")
    more = [f"\nasked: {texts['prompt']}", f"answered: {texts['answer']}"] if texts else []
    return "\n".join([*head, *bars, f"{'whole':7}{_seconds(told['seconds']):>9}", *more])


def _bar(stage: str, start_s: float, length_s: float, whole_s: float) -> str:
    before = min(_BAR_CHARS - 1, int(_BAR_CHARS * start_s / whole_s))
    width = max(1, min(_BAR_CHARS - before, round(_BAR_CHARS * length_s / whole_s)))
    return f"{stage:7}{_seconds(length_s):>9}  |{' ' * before}{'#' * width}{' ' * (_BAR_CHARS - before - width)}|"


def _seconds(value: float) -> str:
    if value < _LEAST_SHOWN_S:
        return "0 s"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
