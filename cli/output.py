"""What every command's output has in common: exit codes, JSON, tables."""

import json
import sys
from typing import Any

import typer

from plimsoll.cli.client import Unauthorised, Unreachable
from plimsoll.errors import PlimsollError, ServerFailed

# Beside 0: it worked, or the answer is yes; 2: wrong usage, typer's own; and 130: Ctrl-C.
NO = 1  # it failed, was refused, or the answer is no
NO_SERVER = 3
UNAUTHORISED = 4
FAILED = 70  # the server failed inside and should be started again; EX_SOFTWARE of sysexits.h

_HOUR_S = 3600
_MINUTE_S = 60


def exit_code(error: PlimsollError) -> int:
    """What a program that ran the command learns of ``error``."""
    if isinstance(error, Unauthorised):
        return UNAUTHORISED
    if isinstance(error, ServerFailed):
        return FAILED
    return NO_SERVER if isinstance(error, Unreachable) else NO


def print_json(value: Any) -> None:
    """One object, for people to look at too."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_json_line(value: Any) -> None:
    """One object of a stream, at once."""
    print(json.dumps(value, ensure_ascii=False), flush=True)  # noqa: T201 - typer.echo flushes late into a pipe


def hint(text: str) -> None:
    """Say something beside the data, on stderr."""
    typer.echo(text, err=True)


def at_terminal() -> bool:
    """Whether somebody looks at stderr, where progress is shown."""
    return sys.stderr.isatty()


def table(head: list[str], rows: list[list[str]], right: str = "") -> str:
    """Columns as wide as they must be; the heads in ``right``, separated by commas, stand over figures."""
    lines = [head, *rows]
    figures = {head.index(name) for name in right.split(",") if name}
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]

    def cell(column: int, text: str) -> str:
        return text.rjust(widths[column]) if column in figures else text.ljust(widths[column])

    return "\n".join("  ".join(cell(column, text) for column, text in enumerate(line)).rstrip() for line in lines)


def duration(seconds: float) -> str:
    """``12 s``, ``15 min``, ``2.5 h``."""
    if seconds >= _HOUR_S:
        return f"{seconds / _HOUR_S:.1f} h"
    return f"{seconds / _MINUTE_S:.0f} min" if seconds >= _MINUTE_S else f"{seconds:.0f} s"
