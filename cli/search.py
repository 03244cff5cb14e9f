"""``plimsoll search``: models of the Hugging Face hub in MLX's format, those that fit this machine first."""

from typing import Annotated

import typer

from plimsoll.catalog.hub_search import Row, ranked, refuse_offline
from plimsoll.catalog.hub_search import search as ask_hub
from plimsoll.cli.config_checks import budget_bytes
from plimsoll.cli.link import AsJson, Link, with_link
from plimsoll.cli.output import hint, print_json, table
from plimsoll.journal.lines import size


@with_link
def search(
    link: Link,
    words: Annotated[list[str], typer.Argument(help="Words of its name.", metavar="WORD...")],
    limit: Annotated[int, typer.Option(help="Repos to show at most.", min=1, max=100)] = 20,
    *,
    as_json: AsJson = False,
) -> None:
    """Search the hub for models in MLX's format; those that fit this machine come first."""
    refuse_offline(link.config.models)
    budget = budget_bytes(link.config)
    rows = ranked(ask_hub(" ".join(words), limit), budget)
    if as_json:
        print_json({"budget_bytes": budget, "models": [row._asdict() for row in rows]})
    elif rows:
        typer.echo(_table(rows))
        hint(f"(models may take {size(budget)} here; fetch one with: plimsoll pull NAME, which checks it exactly)")
    else:
        hint(f"no model in MLX's format is called like {' '.join(words)!r}")


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
