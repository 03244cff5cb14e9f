"""The command line, put together; docs/cli.md lists the commands, their --json keys and the exit codes."""

import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from plimsoll.cli import care_commands, link, model_commands, server_commands, service, talk_commands, watch_commands
from plimsoll.cli.output import exit_code
from plimsoll.errors import PlimsollError


class _Commands(TyperGroup):
    """Every command, with a reader of its output that leaves early (``plimsoll events | head``) as a quiet end."""

    def invoke(self, ctx: Any) -> Any:
        try:
            try:
                return super().invoke(ctx)
            finally:
                if sys.stdout:
                    sys.stdout.flush()
        except BrokenPipeError:
            drop_output()
            raise typer.Exit from None


app = typer.Typer(
    name="plimsoll",
    help="An MLX API server that does not run out of memory.",
    cls=_Commands,
    callback=link.before_the_command,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
# In the order in which the help shows them.
for part in (server_commands, talk_commands, model_commands, watch_commands, care_commands):
    part.add_commands(app)
app.add_typer(service.app)


def run() -> None:
    """Run, with every expected error as one line on stderr."""
    # What is written (logs, black box, caches; the workers' too) is for the owner's eyes only.
    os.umask(0o077)
    try:
        app(prog_name="plimsoll")
    except PlimsollError as error:
        fail(error.message, exit_code(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        drop_output()
        where = f" ({error.filename})" if error.filename else ""
        fail(f"{error.strerror or error}{where}", 1)


def fail(message: str, code: int) -> None:
    """Say what is wrong in one line and leave."""
    typer.echo(f"plimsoll: {' '.join(message.split())}", err=True)
    sys.exit(code)


def drop_output() -> None:
    """Let what is still to be written to stdout go nowhere: Python would complain about it at its end."""
    if sys.stdout:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
