"""``plimsoll chat`` and ``bench``: what generates."""

import sys
from typing import Annotated

import typer

from plimsoll.cli.complete import model_names
from plimsoll.cli.link import AsJson, Link, with_link
from plimsoll.cli.output import print_json

Model = Annotated[
    str | None, typer.Argument(help="Model; default: the server's first.", autocompletion=model_names, metavar="MODEL")
]


def add_commands(app: typer.Typer) -> None:
    """Register this module's commands."""
    app.command(name="chat")(with_link(chat))
    app.command(name="bench")(with_link(bench))


def chat(
    link: Link,
    model: Model = None,
    prompt: Annotated[str | None, typer.Option("--once", help="Answer this and leave.", metavar="PROMPT")] = None,
    temperature: Annotated[float, typer.Option(help="0 is always the likeliest word.", min=0, max=2)] = 0.3,
    *,
    as_json: AsJson = False,
) -> None:
    """Talk with a model; a prompt may also come by a pipe."""
    from plimsoll.cli import chat as it  # noqa: PLC0415 - the other commands start without it

    partner = it.Partner(link.client, model or it.pick_model(link.client), temperature)
    if prompt is None and (as_json or not sys.stdin.isatty()):
        prompt = sys.stdin.read().strip()
        if not prompt:
            raise typer.BadParameter("the prompt on stdin is empty")
    if prompt is None:
        it.converse(partner)
    elif as_json:
        print_json({"model": partner.model, "answer": it.whole(partner, prompt)})
    else:
        it.once(partner, prompt)


def bench(
    link: Link,
    model: Model = None,
    streams: Annotated[str, typer.Option(help="Answers side by side, one row for each.", metavar="N,N")] = "1,4,8",
    tokens: Annotated[int, typer.Option(help="Length of each answer.", min=2, max=4096)] = 64,
    *,
    as_json: AsJson = False,
) -> None:
    """Measure a model on the running server: time to the first token, tokens per second."""
    from plimsoll.cli import bench as it  # noqa: PLC0415 - the other commands start without it
    from plimsoll.cli.chat import pick_model  # noqa: PLC0415

    try:
        widths = it.parse_streams(streams)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    name = model or pick_model(link.client)
    rows = it.run(link.client, name, widths, tokens)
    print_json({"model": name, "tokens": tokens, "rows": [row.as_json() for row in rows]}) if as_json else typer.echo(
        it.bench_table(rows)
    )
