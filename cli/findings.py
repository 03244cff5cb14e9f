"""What ``plimsoll doctor`` finds, and how it is told."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

Degree = Literal["ok", "warning", "problem"]
OK: Degree = "ok"
WARNING: Degree = "warning"
PROBLEM: Degree = "problem"

_SIGNS = {OK: ("ok", "green"), WARNING: ("warning", "yellow"), PROBLEM: ("PROBLEM", "bold red")}


class Finding(NamedTuple):
    """One thing that was looked at; ``hint`` says what to do about it."""

    level: Degree
    subject: str
    text: str
    hint: str = ""

    def as_json(self) -> dict[str, Any]:
        return self._asdict()


def count(findings: Sequence[Finding], level: str) -> int:
    """How many of them are of this level."""
    return sum(one.level == level for one in findings)


def print_report(findings: Sequence[Finding]) -> None:
    """One line for each, with its hint below, and what they come to."""
    from rich.console import Console  # noqa: PLC0415 - not for --json
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for one in findings:
        sign, style = _SIGNS[one.level]
        text = Text(one.text)
        if one.hint:
            text.append(f"\n-> {one.hint}", "italic")
        table.add_row(Text(sign, style), one.subject, text)
    problems, warnings = count(findings, PROBLEM), count(findings, WARNING)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"\n{problems} problem{'s' * (problems != 1)}, {warnings} warning{'s' * (warnings != 1)}")
