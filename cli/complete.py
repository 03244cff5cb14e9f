"""The shell's completion of model names and event kinds; after any error nothing is offered."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import typer

from plimsoll.cli.client import Client
from plimsoll.cli.link import CONFIG_VARIABLE, URL_VARIABLE, find_key
from plimsoll.errors import PlimsollError

_TIMEOUT_S = 0.5


def model_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """The named server's models if it answers at once, else those of the configuration."""
    with contextlib.suppress(PlimsollError, OSError, LookupError):
        return [name for name in _names(ctx) if name.startswith(incomplete)]
    return []


def event_kinds(incomplete: str) -> list[str]:
    """Kinds of events."""
    from plimsoll.journal.events import KINDS  # noqa: PLC0415 - only when somebody presses the key

    return sorted(kind for kind in KINDS if kind.startswith(incomplete))


def _names(ctx: typer.Context) -> list[str]:
    given = dict(_given(ctx))
    if url := given.get("url") or os.environ.get(URL_VARIABLE):
        with contextlib.suppress(PlimsollError):
            client = Client(url, find_key(given.get("api_key"), given.get("api_key_file")))
            models = client.get("/v1/models", timeout_s=_TIMEOUT_S)["data"]
            return [str(model["id"]) for model in models]
    from plimsoll import config  # noqa: PLC0415 - as above
    from plimsoll.catalog.names import Catalog  # noqa: PLC0415 - as above

    return Catalog(config.load(given.get("file") or os.environ.get(CONFIG_VARIABLE)).models).names()


def _given(ctx: typer.Context) -> Iterator[tuple[str, Any]]:
    """The options typed so far, those before the command's name first."""
    if ctx.parent:
        yield from ctx.parent.params.items()
    yield from ((name, value) for name, value in ctx.params.items() if value is not None)
