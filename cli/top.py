"""``plimsoll top``: the server live in the terminal, or one look at it."""

import contextlib
import errno
import os
import queue
import select
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from plimsoll.cli.client import Client
from plimsoll.cli.event_feed import Heard, Lost, follow
from plimsoll.cli.link import AsJson, Link, with_link
from plimsoll.cli.output import print_json
from plimsoll.cli.top_view import EVENTS, View, render
from plimsoll.errors import PlimsollError

_FRAME_S = 0.25
_KINDS = ("sample", "models", "journal")


@with_link
def top(link: Link, *, as_json: AsJson = False) -> None:
    """Watch memory, models and events live; q or Ctrl-C leaves. Without a terminal, one look."""
    if as_json:
        print_json(look(link.client).as_json())
    elif sys.stdout.isatty():
        watch(link.client)
    else:
        print_once(look(link.client))


def look(client: Client) -> View:
    """One look. Raises as ``Client`` does."""
    view = _with_history(client)
    items = follow(client, "sample", "models")
    with contextlib.closing(items):  # type: ignore[type-var] # it is a generator
        for item in items:
            view.hear(item)
            if view.is_whole:
                break
    return view


def print_once(view: View) -> None:
    """A look, for a pipe or a file."""
    console = Console()
    console.print(render(view, console.width, time.time()))


def watch(client: Client) -> None:
    """Draw the server until q or Ctrl-C, over its restarts.

    Raises as ``Client`` does when it can't be reached, ``OSError`` when the terminal is gone.
    """
    view = _with_history(client)
    heard: queue.Queue[Heard | Lost | PlimsollError] = queue.Queue()
    after = view.events[-1]["id"] if view.events else None
    threading.Thread(target=_listen, args=(client, after, heard), daemon=True).start()
    console, shown_on = Console(), sys.stdout.fileno()
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            for item in _drain(heard):
                if isinstance(item, PlimsollError):
                    raise item
                view.hear(item)
            _check_terminal(shown_on)
            frame = render(view, console.width, time.time())
            live.update(Group(frame, Text("\nq leaves", "dim")), refresh=True)
            if pressed(_FRAME_S) in ("q", "Q"):
                return


def _with_history(client: Client) -> View:
    view = View(client.url)
    for row in client.get(f"/admin/history?since=3600&points={EVENTS}")["events"]:
        view.hear(Heard("journal", row))
    return view


def _listen(client: Client, after: int | None, heard: "queue.Queue[Heard | Lost | PlimsollError]") -> None:
    try:
        for item in follow(client, *_KINDS, after=after, reached=True):
            heard.put(item)
    except PlimsollError as error:
        heard.put(error)


def _drain(heard: "queue.Queue[Heard | Lost | PlimsollError]") -> Iterator[Heard | Lost | PlimsollError]:
    with contextlib.suppress(queue.Empty):
        while True:
            yield heard.get_nowait()


def _check_terminal(terminal: int) -> None:
    """Raises ``OSError`` once it has hung up: what is drawn then is lost without a word, and no key ever comes."""
    try:
        termios.tcgetattr(terminal)
    except termios.error as error:
        raise OSError(errno.EIO, "the terminal is gone") from error


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """What waits for a key up to some seconds; keys come at once and are not shown."""
    if not sys.stdin.isatty():
        # Nobody can press one, so this is but a pause.
        yield lambda timeout_s: time.sleep(timeout_s) or ""  # type: ignore[func-returns-value] # None or ""
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def pressed(timeout_s: float) -> str:
        ready, _, _ = select.select([terminal], [], [], timeout_s)
        return os.read(terminal, 1).decode("ascii", "ignore") if ready else ""

    tty.setcbreak(terminal)
    try:
        yield pressed
    finally:
        with contextlib.suppress(termios.error):  # it may be gone
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)
