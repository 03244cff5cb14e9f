"""``plimsoll search``: models of the Hugging Face hub in MLX's format, those that fit this machine first."""

import json
import os
import urllib.request
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlencode

import typer
from huggingface_hub import constants
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # it is in its documentation

from plimsoll.cli.config_checks import budget_bytes
from plimsoll.cli.link import AsJson, Link, with_link
from plimsoll.cli.output import hint, print_json, table
from plimsoll.errors import Unavailable
from plimsoll.journal.lines import size

_VALUE_BYTES = {"F64": 8, "I64": 8, "F32": 4, "U32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
# Beside its weights a model needs room for conversations and for what it computes with.
_MORE_THAN_WEIGHTS = 1.1
_ANSWER_S = 15.0


class Row(NamedTuple):
    """A repo; ``size_bytes`` of its weights is None where the hub does not say, and then ``fits`` is None too."""

    name: str
    size_bytes: int | None
    fits: bool | None
    downloads: int
    gated: bool


@with_link
def search(
    link: Link,
    words: Annotated[list[str], typer.Argument(help="Words of its name.", metavar="WORD...")],
    limit: Annotated[int, typer.Option(help="Repos to show at most.", min=1, max=100)] = 20,
    *,
    as_json: AsJson = False,
) -> None:
    """Search the hub for models in MLX's format; those that fit this machine come first."""
    if link.config.models.offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        which = "models.offline" if link.config.models.offline else "$HF_HUB_OFFLINE"
        raise Unavailable(f"the hub can't be searched while {which} is on; plimsoll models lists what is here")
    budget = budget_bytes(link.config)
    rows = ranked(_ask(" ".join(words), limit), budget)
    if as_json:
        print_json({"budget_bytes": budget, "models": [row._asdict() for row in rows]})
    elif rows:
        typer.echo(_table(rows))
        hint(f"(models may take {size(budget)} here; fetch one with: plimsoll pull NAME, which checks it exactly)")
    else:
        hint(f"no model in MLX's format is called like {' '.join(words)!r}")


def ranked(repos: list[dict[str, Any]], budget: int) -> list[Row]:
    """What fits first, then what is not known, then the rest; the most downloaded first among them."""
    rows = [_row(repo, budget) for repo in repos]
    return sorted(rows, key=lambda row: ({True: 0, None: 1, False: 2}[row.fits], -row.downloads))


def _row(repo: dict[str, Any], budget: int) -> Row:
    parameters = (repo.get("safetensors") or {}).get("parameters") or {}
    weights = sum(_VALUE_BYTES.get(kind, 1) * count for kind, count in parameters.items()) or None
    fits = None if weights is None else weights * _MORE_THAN_WEIGHTS <= budget
    return Row(str(repo["id"]), weights, fits, repo.get("downloads") or 0, bool(repo.get("gated")))


def _ask(words: str, limit: int) -> list[dict[str, Any]]:
    # Not by the library's own list: it tries for a minute, with a warning each time, where there is no network.
    query = {"search": words, "filter": "mlx", "sort": "downloads", "direction": "-1", "limit": limit}
    query |= {"expand[]": ["safetensors", "downloads", "gated"]}
    url = f"{constants.ENDPOINT}/api/models?{urlencode(query, doseq=True)}"
    try:
        asked = urllib.request.Request(url, headers=build_hf_headers())  # noqa: S310 - the hub's address is the user's own
        with urllib.request.urlopen(asked, timeout=_ANSWER_S) as answer:  # noqa: S310 - as above
            found: list[dict[str, Any]] = json.load(answer)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Unavailable(
            f"the hub can't be reached ({reason}); check the network. plimsoll models lists what is here"
        ) from None
    return found


def _table(rows: list[Row]) -> str:
    sure = {True: "yes", False: "no", None: "?"}
    cells = [
        [
            row.name,
            "-" if row.size_bytes is None else size(row.size_bytes),
            sure[row.fits],
            f"{row.downloads:,}",
            "token needed" if row.gated else "",
        ]
        for row in rows
    ]
    return table(["NAME", "SIZE", "FITS", "DOWNLOADS", ""], cells, right="SIZE,DOWNLOADS")
