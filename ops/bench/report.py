"""The table that a benchmark prints: a figure a line, its target, and whether it was reached."""

import os
import platform
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

_PACKAGES = ("mlx", "mlx-lm", "sanic", "pykka", "uvloop")


@dataclass
class Report:
    """``series`` are (x, y) points for the picture, by chart and line."""

    rows: list[tuple[str, str, str, bool | None]] = field(default_factory=list)
    series: dict[str, dict[str, list[tuple[float, float]]]] = field(default_factory=dict)

    def row(self, figure: str, target: str, value: str, *, ok: bool | None = None) -> None:
        """``ok`` None is a figure without a target."""
        self.rows.append((figure, target, value, ok))
        print(f"{figure:<70} {target:<16} {value:<52} {verdict(ok)}".rstrip(), flush=True)

    def point(self, chart: str, line: str, x: float, y: float) -> None:
        self.series.setdefault(chart, {}).setdefault(line, []).append((x, y))

    @property
    def missed(self) -> list[str]:
        return [figure for figure, _, _, ok in self.rows if ok is False]

    def markdown(self) -> str:
        """The rows as a Markdown table."""
        lines = ["| figure | target | measured | |", "|---|---|---|---|"]
        return "\n".join([*lines, *(f"| {f} | {t} | {v} | {verdict(ok)} |" for f, t, v, ok in self.rows)])


def verdict(ok: bool | None) -> str:
    return {None: "", True: "ok", False: "falls short"}[ok]


def machine() -> str:
    """What was measured on, in a line."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
    return f"{platform.system()} {platform.machine()}, {_cpu()}, {os.cpu_count()} cores, Python {_python()}, {versions}"


def _cpu() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.processor()


def _python() -> str:
    return platform.python_version()
