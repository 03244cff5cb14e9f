"""What ``plimsoll top`` shows: the server's last words, and how they look."""

import time
from collections import deque
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from plimsoll.cli import listing
from plimsoll.cli.event_feed import Heard, Lost
from plimsoll.cli.output import duration
from plimsoll.journal.lines import size

_COLOURS = {"normal": "green", "warning": "yellow", "critical": "red", "emergency": "bold red"}
_SEVERITIES = {"warning": "yellow", "error": "red"}
_THRESHOLDS = ("warning", "critical", "emergency")
EVENTS = 8
_BAR_FIGURES = 34  # what stands beside the bar
_HEADS = ("MODEL", "STATE", "MEMORY", "BUSY", "QUEUE", "TOK/S", "UNLOADS")


class View:
    """The server as it was heard of last; times are seconds since the epoch."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.hello: dict[str, Any] = {}
        self.sample: dict[str, Any] = {}
        self.models: list[dict[str, Any]] | None = None
        self.events: deque[dict[str, Any]] = deque(maxlen=EVENTS)
        self.lost = ""

    @property
    def is_whole(self) -> bool:
        """Whether everything was heard at least once."""
        return bool(self.hello and self.sample) and self.models is not None

    def hear(self, item: Heard | Lost) -> None:
        """Take note of what came."""
        if isinstance(item, Lost):
            self.lost = item.reason
            return
        self.lost = ""
        match item.kind:
            case "hello":
                self.hello = item.data
            case "sample":
                self.sample = item.data
            case "models":
                self.models = item.data["models"]
            case "journal":
                self.events.append(item.data)

    def as_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        return {
            "url": self.url,
            "server": self.hello,
            "sample": self.sample,
            "models": self.models or [],
            "events": list(self.events),
        }


def render(view: View, width: int, now: float) -> RenderableType:
    """The view at the time ``now``, ``width`` columns wide."""
    parts: list[RenderableType] = [_head(view, now)]
    if view.sample:
        parts += [Text(), _memory(view, width), _sources(view.sample), *_problems(view.sample)]
    parts += [Text(), _models(view.models or []), Text(), *_events(view)]
    return Group(*parts)


def _head(view: View, now: float) -> Text:
    head = Text.assemble(("plimsoll ", "bold"), str(view.hello.get("version", "")), "  ", view.url, overflow="ellipsis")
    head.no_wrap = True
    if view.lost:
        head.append("  gone, waiting for it", "bold red")
    elif view.hello:
        status = str(view.sample.get("status", ""))
        head.append(f"  up {duration(max(0.0, now - view.hello['started_at']))}  ")
        head.append(status, _COLOURS.get(view.sample.get("level", ""), ""))
    return head


def _memory(view: View, width: int) -> Text:
    """A bar with a mark at each threshold."""
    sample, colour = view.sample, _COLOURS.get(view.sample["level"], "")
    cells = max(10, width - _BAR_FIGURES)
    filled = min(cells, round(cells * sample["percent"] / 100))
    thresholds = view.hello.get("thresholds", {})
    marks = {min(cells - 1, int(cells * thresholds[name] / 100)): name for name in _THRESHOLDS if name in thresholds}
    bar = Text("memory ")
    for cell in range(cells):
        if cell in marks:
            bar.append("│", _COLOURS[marks[cell]])
        else:
            bar.append("█" if cell < filled else "░", colour if cell < filled else "dim")
    bar.append(f" {sample['percent']:5.1f}%", f"bold {colour}")
    bar.append(f"  {size(sample['used'])} of {size(sample['total'])}")
    bar.no_wrap = True
    return bar


def _sources(sample: dict[str, Any]) -> Text:
    parts = []
    for name, source in sorted(sample["sources"].items(), key=lambda item: -item[1]["percent"]):
        parts.append((f"{name} {source['percent']:.1f}%", "bold" if name == sample["source"] else ""))
    models = sum(sample["models"].values())
    parts.append((f"models {size(models)}, server {size(sample['front'])}", ""))
    parts.append((f"loads {sample['admission']}", "red" if sample["admission"] == "closed" else ""))
    if sample.get("seconds_to_critical") is not None:
        parts.append((f"critical in {duration(sample['seconds_to_critical'])}", "red"))
    return Text("       ") + Text("  ").join(Text(text, style) for text, style in parts)


def _problems(sample: dict[str, Any]) -> list[Text]:
    return [Text(f"! {problem}", "yellow") for problem in sample["problems"]]


def _models(models: list[dict[str, Any]]) -> RenderableType:
    alive = [one for one in models if one["state"] not in ("cold", "stopped")]
    if not alive:
        return Text(f"no model is loaded ({len(models)} to choose from)", "dim")
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for head in _HEADS:
        justify = "right" if head in ("MEMORY", "BUSY", "QUEUE", "TOK/S") else "left"
        table.add_column(head, justify=justify, no_wrap=True, overflow="ellipsis")  # type: ignore[arg-type]
    for one in alive:
        state = Text(listing.state(one), _state_style(one["state"]))
        figures = str(one["active"]), str(one["queued"]), listing.speed(one), listing.unloads(one)
        table.add_row(one["name"], state, listing.footprint(one), *figures)
    return table


def _state_style(state: str) -> str:
    styles = {"busy": "green", "ready": "", "loading": "cyan", "failed": "red", "backoff": "red"}
    return styles.get(state, "yellow")


def _events(view: View) -> list[Text]:
    lines = []
    for row in view.events:
        at = time.strftime("%H:%M:%S", time.localtime(row["at"]))
        line = Text.assemble((f"{at}  ", "dim"), (row["text"], _SEVERITIES.get(row["severity"], "")))
        line.no_wrap, line.overflow = True, "ellipsis"
        lines.append(line)
    return lines
