"""``plimsoll pull`` and ``doctor``: what has to be right before a server can serve."""

from typing import Annotated

import typer

from plimsoll.cli.complete import model_names
from plimsoll.cli.link import AsJson, Link, with_link
from plimsoll.cli.output import NO, print_json, print_json_line


def add_commands(app: typer.Typer) -> None:
    """Register this module's commands."""
    app.command(name="pull")(with_link(pull))
    app.command(name="doctor")(with_link(doctor))


def pull(
    link: Link,
    model: Annotated[str, typer.Argument(help="Its name.", autocompletion=model_names, metavar="MODEL")],
    *,
    force: Annotated[bool, typer.Option("--force", help="Fetch what does not fit, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch a model's files, by the running server or without one; an interrupted pull goes on where it ended."""
    from plimsoll.cli import pull as it  # noqa: PLC0415 - the other commands start without it
    from plimsoll.cli.bars import progress_bar  # noqa: PLC0415 - as above

    steps = it.steps(link, model, force=force)
    if as_json:
        for step in steps:
            print_json_line(step)
        return
    with progress_bar(model) as progress:
        for step in steps:
            progress(step["status"], step.get("completed", 0), step.get("total", 0))
    typer.echo(f"{model} is here")


def doctor(link: Link, *, as_json: AsJson = False) -> None:
    """Say what is wrong with this machine, the configuration, the models; exit code 1 if there is a problem."""
    from plimsoll.cli import doctor as it  # noqa: PLC0415 - as above

    findings = it.examine(link)
    if as_json:
        print_json({"problems": it.count(findings, it.PROBLEM), "findings": [one.as_json() for one in findings]})
    else:
        it.print_report(findings)
    if it.count(findings, it.PROBLEM):
        raise typer.Exit(NO)
