"""``plimsoll menubar``: an item in macOS's menu bar, drawn by rumps (the extra ``menubar``)."""

import importlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from plimsoll.cli.client import Client
from plimsoll.cli.event_feed import Lost, follow
from plimsoll.cli.link import Link, with_link
from plimsoll.cli.menu import Line, Menu
from plimsoll.cli.service import describe, manager
from plimsoll.errors import ConfigError, PlimsollError

_AGAIN_S = 2.0


@with_link
def menubar(link: Link) -> None:
    """Show memory and models in macOS's menu bar; load and unload there, start and stop the service."""
    try:
        rumps = importlib.import_module("rumps")
    except ImportError:
        why = "it is for macOS" if sys.platform != "darwin" else "install it with: pip install 'mlx-plimsoll[menubar]'"
        raise ConfigError(f"the menu bar item needs rumps, which is not installed; {why}") from None
    bar = RumpsBar(rumps)
    menu = Menu(bar, LinkedServer(link), lambda work: threading.Thread(target=work, daemon=True).start())
    threading.Thread(target=listen, args=(link.client, menu), daemon=True).start()
    bar.run()


def listen(client: Client, menu: Menu, sleep: Callable[[float], Any] = time.sleep) -> None:
    """Tell ``menu`` what the server says, for ever; a server that is not there is asked for again and again."""
    while True:
        try:
            for item in follow(client, "sample", "models"):
                menu.hear(item)
        except PlimsollError as error:
            menu.hear(Lost(error.message))
        sleep(_AGAIN_S)


class LinkedServer:
    """The server that the command was pointed at, and this user's service."""

    def __init__(self, link: Link) -> None:
        self.url = link.url
        self._link = link

    def load(self, model: str) -> None:
        self._post(model, "load")

    def unload(self, model: str) -> None:
        self._post(model, "unload")

    def start(self) -> None:
        manager().install(describe(self._link.file))

    def stop(self) -> None:
        manager().uninstall()

    def _post(self, model: str, verb: str) -> None:
        self._link.client.post(f"/admin/models/{quote(model, safe='/:@')}/{verb}", {}, timeout_s=None)


class RumpsBar:
    """The item itself. AppKit may be used on the main thread only, so a timer there takes what is to be shown."""

    def __init__(self, rumps: Any) -> None:
        self._rumps = rumps
        self._app = rumps.App("Plimsoll", quit_button="Quit")
        self._wanted: tuple[str, list[Line]] | None = None
        self._told: list[str] = []
        self._timer = rumps.Timer(self._draw, 0.5)

    def run(self) -> None:
        """Draw until somebody quits."""
        self._timer.start()
        self._app.run()

    def show(self, title: str, lines: list[Line]) -> None:
        self._wanted = title, lines

    def tell(self, text: str) -> None:
        self._told.append(text)

    def _draw(self, _timer: Any) -> None:
        while self._told:
            self._rumps.notification("Plimsoll", "", self._told.pop(0))
        if self._wanted is None:
            return
        (title, lines), self._wanted = self._wanted, None
        self._app.title = title
        self._app.menu.clear()
        self._app.menu = [*map(self._item, lines), None, self._rumps.MenuItem("Quit", self._rumps.quit_application)]

    def _item(self, line: Line) -> Any:
        press = line.press
        item = self._rumps.MenuItem(line.text, callback=(lambda _: press()) if press else None)
        for inner in line.lines:
            item.add(self._item(inner))
        return item
