"""The command line, put together; docs/cli.md lists the commands, their --json keys and the exit codes."""

import importlib
import os
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from plimsoll import __version__
from plimsoll.cli import link
from plimsoll.cli.output import exit_code, print_json
from plimsoll.errors import PlimsollError

# Name -> module of ``plimsoll.cli`` that holds the function of that name, and the function's first line for the help.
COMMANDS = {
    "serve": ("serve", "Start the server."),
    "check": ("config_checks", "Check the configuration and print what is in force."),
    "reload": ("admin", "Have the server read its configuration file again."),
    "version": ("app", "Print the version."),
    "chat": ("chat", "Talk with a model; a prompt may also come by a pipe."),
    "prompt": (
        "prompt",
        "Print the prompt that a model gets for the request on stdin, and what was changed in it and why.",
    ),
    "launch": ("launch", "Start a coding agent with this server as its model, or list those that can be started."),
    "bench": ("bench", "Measure a model on the running server: time to the first token, tokens per second."),
    "models": ("models", "List the models that the configuration offers."),
    "show": ("models", "Show one model: where it is from, what it can do, what it needs."),
    "set": ("set_keys", "Set keys of a model's entry in the configuration file; a running server follows at once."),
    "unset": ("set_keys", "Take keys out of a model's entry, so that their defaults hold again."),
    "search": ("search", "Search the hub for models in MLX's format; those that fit this machine come first."),
    "ps": ("admin", "List the models that are loaded, loading or leaving."),
    "load": ("admin", "Load a model, and wait until it is ready."),
    "unload": ("admin", "Unload a model, and wait until its memory is back."),
    "pin": (
        "admin",
        "Keep a model loaded until the server ends: neither idleness nor another model unloads it.",
    ),
    "unpin": ("admin", "Let a model be unloaded again when it is idle."),
    "plan": ("admin", "Say what loading a model would do now, without doing it; exit code 1 if it would be refused."),
    "cleanup": ("admin", "Unload idle models, the least recently used first, until only the last used one is left."),
    "events": ("event_feed", "Show what happened to memory, also in earlier runs."),
    "requests": (
        "requests",
        "Show the newest requests that have ended: who asked what, how many tokens, where the time went.",
    ),
    "top": ("top", "Watch memory, models and events live; q or Ctrl-C leaves. Without a terminal, one look."),
    "menubar": (
        "menubar",
        "Show memory and models in macOS's menu bar; load and unload there, start and stop the service.",
    ),
    "pull": (
        "pull",
        "Fetch a model's files; an interrupted pull goes on where it ended.",
    ),
    "convert": (
        "convert_model",
        "Quantise a model, or change its precision; the result is offered under a name of its own.",
    ),
    "rm": ("remove", "Delete a model's files from this machine's disk; a running server unloads it first."),
    "doctor": (
        "doctor",
        "Say what is wrong with machine, configuration and models; exit code 1 if there is a problem.",
    ),
    "service": ("service", "Have launchd or systemd run the server for this user."),
}


class _Commands(TyperGroup):
    """The commands, each one's module imported only when that command runs.

    The help and the shell's completion need only names and first lines, and ``plimsoll ps`` none of what
    ``plimsoll serve`` imports. A reader that leaves early (``plimsoll events | head``) is a quiet end.
    """

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - typer's signature
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - typer's signature
        """The command's name and help; ``resolve_command`` puts the command itself in its place."""
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name][1]) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, _load(str(name)) if command else None, rest

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
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _load(name: str) -> Any:
    found = getattr(importlib.import_module(f"plimsoll.cli.{COMMANDS[name][0]}"), name)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        alone.command(name)(found)
        found = alone
    return typer.main.get_command(found)


def version(*, as_json: link.AsJson = False) -> None:
    """Print the version."""
    print_json({"version": __version__}) if as_json else typer.echo(__version__)


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
