"""The output of all commands: exit codes, JSON, tables, progress."""

import contextlib
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import typer

from plimsoll.cli.client import Unauthorised, Unreachable
from plimsoll.errors import PlimsollError, ServerFailed
from plimsoll.journal.lines import size

# Beside 0: it worked, or the answer is yes; 2: wrong usage, typer's own; and 130: Ctrl-C.
NO = 1  # it failed, was refused, or the answer is no
NO_SERVER = 3
UNAUTHORISED = 4
FAILED = 70  # the server failed inside and should be started again; EX_SOFTWARE of sysexits.h

_HOUR_S = 3600
_MINUTE_S = 60


def exit_code(error: PlimsollError) -> int:
    """The exit code that tells a calling program about ``error``."""
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


Progress = Callable[[str, int, int], None]
"""Called with the stage, and the bytes done of a total; a total of 0 is not known."""

# The speed is that of the last seconds: what was there before a resumed download began costs no time.
_SPEED_OVER_S = 10.0


@contextlib.contextmanager
def progress_bar(name: str) -> Iterator[Progress]:
    """Yields the function that draws the bar; nothing is drawn where stderr is no terminal, and the bar is removed."""
    if not at_terminal():
        yield lambda _stage, _done, _total: None
        return
    from rich import progress as bars  # noqa: PLC0415 - only for a terminal
    from rich.console import Console  # noqa: PLC0415 - only for a terminal

    columns = bars.TextColumn("{task.description}"), bars.BarColumn(), bars.TextColumn("{task.fields[figures]}")
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None, figures="")
        speed = Speed()

        def progress(stage: str, done: int, total: int) -> None:
            figures = speed.figures(stage, done, total, time.monotonic())
            bar.update(task, description=f"{name}: {stage}", completed=done, total=total or None, figures=figures)

        yield progress


class Speed:
    """Bytes per second over the last ten seconds, and the time that the rest will take."""

    def __init__(self) -> None:
        self._stage = ""
        self._seen: deque[tuple[float, int]] = deque()

    def figures(self, stage: str, done: int, total: int, now_s: float) -> str:
        """``1.2 GB of 4.3 GB, 34 MB/s, 2 min left``, as far as it is known."""
        if stage != self._stage or (self._seen and done < self._seen[-1][1]):
            self._stage = stage
            self._seen.clear()
        self._seen.append((now_s, done))
        while now_s - self._seen[0][0] > _SPEED_OVER_S:
            self._seen.popleft()
        text = f"{size(done)} of {size(total)}" if total else size(done) if done else ""
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        if last > first and last_s > first_s:
            per_s = (last - first) / (last_s - first_s)
            text += f", {size(per_s)}/s"
            if total > done:
                text += f", {duration((total - done) / per_s)} left"
        return text
