"""The menu bar item's logic, with a bar that only remembers; rumps itself runs on macOS alone."""

import pytest

from plimsoll.cli import menu as menu_module
from plimsoll.cli import menubar
from plimsoll.cli.client import Unreachable
from plimsoll.cli.event_feed import Heard, Lost
from plimsoll.cli.menu import Line, Menu
from plimsoll.errors import PlimsollError

GB = 2**30
SAMPLE = {
    "percent": 72.4,
    "level": "normal",
    "used": 23 * GB,
    "total": 32 * GB,
    "models": {"big": 8 * GB},
    "problems": [],
}


class Bar:
    def __init__(self):
        self.shown, self.told = [], []

    def show(self, title, lines):
        self.shown.append((title, lines))

    def tell(self, text):
        self.told.append(text)

    def press(self, *words):
        lines = self.shown[-1][1]
        for word in words:
            (line,) = [one for one in lines if one.text.startswith(word)]
            lines = line.lines
        line.press()


class Server:
    url = "http://127.0.0.1:1"

    def __init__(self):
        self.done = []
        self.fails = False

    def __getattr__(self, verb):
        def act(*of):
            self.done.append((verb, *of))
            if self.fails:
                raise PlimsollError("it does not fit")

        return act


@pytest.fixture
def bar():
    return Bar()


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def menu(bar, server):
    return Menu(bar, server, lambda work: work())


def model(name, state, **more):
    return {"name": name, "state": state, "stage": None, "total_bytes": 0, "footprint_bytes": 0, **more}


def test_without_a_server_the_service_can_be_started(menu, bar, server):
    title, lines = bar.shown[-1]
    assert title == "⚓ -"
    assert lines[0] == Line("Plimsoll does not run: no server is running")
    bar.press("Start the service")
    assert server.done == [("start",)]


def test_memory_and_models_are_shown_and_models_loaded_and_unloaded(menu, bar, server, monkeypatch):
    menu.hear(Heard("sample", SAMPLE))
    models = [model("big", "ready", footprint_bytes=8 * GB), model("small", "cold"), model("old", "draining")]
    menu.hear(Heard("models", {"models": models}))
    title, lines = bar.shown[-1]
    assert title == "⚓ 72 %"
    texts = ["23.0 GB of 32.0 GB used, models hold 8.0 GB", "big: ready, 8.0 GB", "small", "old: draining"]
    assert [line.text for line in lines] == [*texts, "Open the page", "Stop the service"]
    bar.press("big", "Unload")
    bar.press("small", "Load")
    bar.press("Stop the service")
    assert server.done == [("unload", "big"), ("load", "small"), ("stop",)]
    opened = []
    monkeypatch.setattr(menu_module.webbrowser, "open", opened.append)
    bar.press("Open the page")
    assert opened == [server.url]


def test_a_level_above_normal_and_its_problems_are_told(menu, bar):
    menu.hear(Heard("sample", SAMPLE | {"level": "critical", "percent": 96.0, "problems": ["the disk is silent"]}))
    assert bar.shown[-1][0] == "⚓ 96 % critical"
    assert bar.shown[-1][1][1].text == "the disk is silent"


def test_what_looks_the_same_is_not_drawn_again(menu, bar):
    menu.hear(Heard("sample", SAMPLE))
    count = len(bar.shown)
    menu.hear(Heard("sample", SAMPLE | {"percent": 72.3}))
    assert len(bar.shown) == count
    menu.hear(Lost("it ended the connection"))
    assert bar.shown[-1][0] == "⚓ -"


def test_what_fails_is_told_and_the_menu_goes_on(menu, bar, server):
    server.fails = True
    bar.press("Start the service")
    assert bar.told == ["it does not fit"]


def test_a_server_that_is_not_there_is_asked_for_again(menu, bar):
    class Client:
        def lines(self, *_, **__):
            raise Unreachable("nobody answers")

    class Enough(Exception):
        pass

    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            raise Enough

    with pytest.raises(Enough):
        menubar.listen(Client(), menu, sleep)
    assert bar.shown[-1][1][0].text == "Plimsoll does not run: nobody answers"


def test_the_item_is_drawn_on_rumps_timer(bar):
    class MenuItem:
        def __init__(self, text, callback=None):
            self.text, self.callback, self.inner = text, callback, []

        def add(self, item):
            self.inner.append(item)

    class App:
        def __init__(self, *_, **__):
            self.title, self.menu = "", {}

    class Rumps:
        quit_application = None

        def __init__(self):
            self.notified = []
            self.MenuItem, self.App, self.Timer = MenuItem, App, lambda work, every_s: None

        def notification(self, *words):
            self.notified.append(words)

    rumps, pressed = Rumps(), []
    item = menubar.RumpsBar(rumps)
    item._draw(None)
    item.show("⚓ 1 %", [Line("m", lines=(Line("Load", lambda: pressed.append(1)),))])
    item.tell("it failed")
    item._draw(None)
    assert item._app.title == "⚓ 1 %"
    model_item, gap, last = item._app.menu
    model_item.inner[0].callback(None)
    assert (pressed, model_item.callback, gap, last.text) == ([1], None, None, "Quit")
    assert rumps.notified == [("Plimsoll", "", "it failed")]


def test_without_rumps_the_command_says_what_to_do(plimsoll, shell):
    shell.fails(plimsoll("menubar", "--url", "http://127.0.0.1:1"), 1, "needs rumps")
