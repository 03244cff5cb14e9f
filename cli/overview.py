"""``plimsoll`` alone: what it is, whether a server runs and what it serves, and what to do next."""

from typing import Any

import typer

from plimsoll.cli.client import Unauthorised
from plimsoll.cli.link import Link
from plimsoll.errors import PlimsollError
from plimsoll.journal.lines import size

_ANSWER_S = 2.0
_SHOWN_MODELS = 5


def overview() -> None:
    """Print it; nothing that goes wrong with the server is an error here."""
    link = Link(None, None, None, None)
    typer.echo("Plimsoll serves language models and does not run out of memory.\n")
    for line in (*_server(link), "", "All commands: plimsoll --help"):
        typer.echo(line)


def _server(link: Link) -> list[str]:
    try:
        url = link.url
        health = link.client.get("/health?cleanup=no", timeout_s=_ANSWER_S)
        models = link.client.get("/admin/models", timeout_s=_ANSWER_S)["models"]
    except Unauthorised as error:
        return [f"A server runs at {link.url}, but {error.message}", *_steps(("plimsoll doctor", "what is wrong"))]
    except PlimsollError as error:
        reason = error.message.partition(";")[0]
        return [
            f"{reason[:1].upper()}{reason[1:]}.",
            *_steps(
                ("plimsoll serve", "start it here, with a small chat model that is fetched once (93 MB)"),
                ("plimsoll service install", "have it started at every login"),
                ("plimsoll models", "what there is to serve: yours, Hugging Face's cache, LM Studio's folders"),
                ("plimsoll doctor", "whether this machine and the configuration are right"),
            ),
        ]
    return [
        f"A server runs at {url} ({health['status']}): {_loaded(models)}",
        *_steps(
            ("plimsoll chat", "talk with a model"),
            ("plimsoll top", "watch memory and models"),
            ("plimsoll models", "what there is to serve"),
            (f"{url}/", "the same in a browser"),
        ),
    ]


def _loaded(models: list[dict[str, Any]]) -> str:
    loaded = [f"{one['name']} ({size(one['footprint_bytes'])})" for one in models if one.get("footprint_bytes")]
    more = f" and {len(loaded) - _SHOWN_MODELS} more" if len(loaded) > _SHOWN_MODELS else ""
    return f"{len(models)} models, {', '.join(loaded[:_SHOWN_MODELS]) or 'none'}{more} loaded."


def _steps(*steps: tuple[str, str]) -> list[str]:
    width = max(len(command) for command, _ in steps)
    return [f"  {command.ljust(width)}  {what}" for command, what in steps]
