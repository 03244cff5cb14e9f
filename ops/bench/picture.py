"""The charts of a benchmark as one SVG, and its table as a page of the docs."""

from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.ticker import NullLocator, ScalarFormatter
from report import Report

_INK = "#1d2b36"
_COLOURS = {
    "Plimsoll": "#0b7285",
    "mlx_lm.server": "#c05621",
    "raw BatchGenerator": "#868e96",
    "refused": "#c05621",
    "lost": "#862e9c",
    "place, evicting": "#862e9c",
    "refuse": "#c05621",
    "route": "#868e96",
    "report": "#2b8a3e",
}
_ABSCISSA = {
    "tokens/s": "streams",
    "MB after swaps": "swaps",
    "front: us of CPU per token": "streams",
    "us for a decision": "nodes",
    "% of requests, cold start": "minute",
    "% of requests, a tenth of all nodes lost": "minute",
}
_LOG_BASE = {"streams": 2, "nodes": 10}
_BEGIN, _END = "<!-- measured -->", "<!-- /measured -->"


def write(path: Path, report: Report) -> None:
    """One chart for each of the report's series."""
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
