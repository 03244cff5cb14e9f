"""What a benchmark reports: a table with targets on the terminal and in a page of docs/, its charts as one SVG."""

import os
import platform
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

_PACKAGES = ("mlx", "mlx-lm", "sanic", "pykka", "uvloop")
_INK = "#1d2b36"
_COLOURS = {
    "Plimsoll": "#0b7285",
    "mlx_lm.server": "#c05621",
    "raw BatchGenerator": "#868e96",
}
_ABSCISSA = {
    "tokens/s": "streams",
    "MB after swaps": "swaps",
    "front: us of CPU per token": "streams",
}
_LOG_BASE = {"streams": 2}
_BEGIN, _END = "<!-- measured -->", "<!-- /measured -->"


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


def write_picture(path: Path, report: Report) -> None:
    """Draw one chart for each of the report's series into an SVG."""
    import matplotlib as mpl  # noqa: PLC0415 - only for a run that draws

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415
    from matplotlib.ticker import NullLocator, ScalarFormatter  # noqa: PLC0415

    plt.rcParams.update({"svg.hashsalt": "plimsoll", "font.size": 9, "text.color": _INK, "axes.edgecolor": "#adb5bd"})
    figure, axes = plt.subplots(1, len(report.series), figsize=(4 * len(report.series), 3.2), squeeze=False)
    for (chart, lines), axis in zip(report.series.items(), axes[0], strict=True):
        for name, points in lines.items():
            xs, ys = zip(*points, strict=True)
            axis.plot(xs, ys, marker="o", markersize=3, label=name, color=_COLOURS.get(name, "#0b7285"))
        axis.set_title(chart, fontsize=10)
        axis.set_xlabel(_ABSCISSA.get(chart, ""))
        if base := _LOG_BASE.get(_ABSCISSA.get(chart, "")):
            axis.set_xscale("log", base=base)
            axis.set_xticks(sorted({x for points in lines.values() for x, _ in points}))
            axis.xaxis.set_major_formatter(ScalarFormatter())
            axis.xaxis.set_minor_locator(NullLocator())
        axis.set_ylim(bottom=0)
        axis.grid(color="#e9ecef")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def write_table(path: Path, report: Report, how: str) -> None:
    """Put the table between the page's two marks."""
    before, _, rest = path.read_text(encoding="utf-8").partition(_BEGIN)
    _, _, after = rest.partition(_END)
    path.write_text(f"{before}{_BEGIN}\n{how}\n\n{report.markdown()}\n{_END}{after}", encoding="utf-8")
