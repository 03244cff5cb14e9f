"""What the menu bar item shows and does: the server as it was heard of last, as a title and lines to press."""

import webbrowser
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from plimsoll.cli import listing
from plimsoll.cli.event_feed import Heard, Lost
from plimsoll.cli.top_view import View
from plimsoll.errors import PlimsollError
from plimsoll.journal.lines import size

_LOADED = ("ready", "busy", "loading", "backoff")
_LEAVING = ("draining", "stopping")


class Line(NamedTuple):
    """A line of the menu; without ``press`` it only says something. ``lines`` are its own menu."""

    text: str
    press: Callable[[], None] | None = None
    lines: tuple["Line", ...] = ()


class Server(Protocol):
    """What can be done to the server. Every method may take long and raise ``PlimsollError``."""

    url: str

    def load(self, model: str) -> None: ...
    def unload(self, model: str) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...


class Bar(Protocol):
    """The item in the menu bar; each method may be called from any thread."""

    def show(self, title: str, lines: list[Line]) -> None: ...
    def tell(self, text: str) -> None: ...


class Menu:
    """Keeps the bar as the server is. ``in_background`` runs what a press starts, so that the menu goes on."""

    def __init__(self, bar: Bar, server: Server, in_background: Callable[[Callable[[], None]], Any]) -> None:
        self._bar = bar
        self._server = server
        self._in_background = in_background
        self._view = View(server.url)
        self._view.lost = "no server is running"
        self._shown: tuple[str, list[tuple[str, ...]]] | None = None
        self._refresh()

    def hear(self, item: Heard | Lost) -> None:
        """Show what came, where that changes anything to see."""
        self._view.hear(item)
        self._refresh()

    def _refresh(self) -> None:
        title, lines = self._title(), self._lines()
        words = [(line.text, *(inner.text for inner in line.lines)) for line in lines]
        if (title, words) != self._shown:
            self._shown = title, words
            self._bar.show(title, lines)

    def _title(self) -> str:
        sample = self._view.sample
        if self._view.lost or not sample:
            return "⚓ -"
        level = "" if sample["level"] == "normal" else f" {sample['level']}"
        return f"⚓ {sample['percent']:.0f} %{level}"

    def _lines(self) -> list[Line]:
        server, view = self._server, self._view
        if view.lost or not view.sample:
            return [Line(f"Plimsoll does not run: {view.lost}"), self._line("Start the service", server.start)]
        sample = view.sample
        held = size(sum(sample["models"].values()))
        return [
            Line(f"{size(sample['used'])} of {size(sample['total'])} used, models hold {held}"),
            *(Line(problem) for problem in sample["problems"]),
            *map(self._model, view.models or []),
            Line("Open the page", self._open),
            self._line("Stop the service", server.stop),
        ]

    def _model(self, model: dict[str, Any]) -> Line:
        name, state = model["name"], model["state"]
        if state in _LEAVING:
            return Line(f"{name}: {state}")
        if state in _LOADED:
            held = listing.footprint(model)
            unload = self._line("Unload", lambda: self._server.unload(name))
            return Line(f"{name}: {listing.state(model)}{'' if held == '-' else f', {held}'}", lines=(unload,))
        return Line(name, lines=(self._line("Load", lambda: self._server.load(name)),))

    def _line(self, text: str, act: Callable[[], None]) -> Line:
        return Line(text, lambda: self._in_background(lambda: self._do(act)))

    def _do(self, act: Callable[[], None]) -> None:
        try:
            act()
        except (PlimsollError, OSError) as error:
            self._bar.tell(str(error))

    def _open(self) -> None:
        webbrowser.open(self._server.url)
