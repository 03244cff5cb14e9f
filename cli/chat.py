"""``plimsoll chat``: a conversation in the terminal, or one answer for a pipe."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Annotated, NamedTuple

import typer

from plimsoll.cli.client import Client, Note, Refused
from plimsoll.cli.complete import model_names
from plimsoll.cli.link import AsJson, Link, with_link
from plimsoll.cli.output import print_json

_HELP = "/reset forgets the conversation, /exit (or Ctrl-D) leaves, Ctrl-C stops an answer"
_LOOK_S = 0.2

AnyModel = Annotated[
    str | None, typer.Argument(help="Model; default: the server's first.", autocompletion=model_names, metavar="MODEL")
]


@with_link
def chat(
    link: Link,
    model: AnyModel = None,
    prompt: Annotated[str | None, typer.Option("--once", help="Answer this and leave.", metavar="PROMPT")] = None,
    temperature: Annotated[float, typer.Option(help="0 is always the likeliest word.", min=0, max=2)] = 0.3,
    *,
    as_json: AsJson = False,
) -> None:
    """Talk with a model; a prompt may also come by a pipe."""
    partner = Partner(link.client, model or pick_model(link.client), temperature)
    if prompt is None and (as_json or not sys.stdin.isatty()):
        prompt = sys.stdin.read().strip()
        if not prompt:
            raise typer.BadParameter("the prompt on stdin is empty")
    if prompt is None:
        converse(partner)
    elif as_json:
        print_json({"model": partner.model, "answer": whole(partner, prompt)})
    else:
        once(partner, prompt)


class Partner(NamedTuple):
    """Who answers, and how freely: small models ramble at 1.0, the API's own default."""

    client: Client
    model: str
    temperature: float


def pick_model(client: Client) -> str:
    """The first model the server offers. Raises ``Refused`` where there is none."""
    names = [model["id"] for model in client.get("/v1/models")["data"]]
    if not names:
        raise Refused("the server offers no model; add one to models.entries")
    return str(names[0])


def once(partner: Partner, prompt: str) -> None:
    """Print one answer. Ctrl-C ends the program, as for any filter."""
    _answer(partner, [{"role": "user", "content": prompt}])


def whole(partner: Partner, prompt: str) -> str:
    """The answer in one piece, for programs."""
    answer = partner.client.chat(partner.model, [{"role": "user", "content": prompt}], partner.temperature)
    return "".join(piece for piece in answer if not isinstance(piece, Note))


def converse(partner: Partner) -> None:
    """Talk until the user leaves; an error of the server ends one answer and not the conversation."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401, PLC0415 - line editing for input()

    typer.echo(f"{partner.model} at {partner.client.url}. {_HELP}.", err=True)
    history: list[dict[str, str]] = []
    while True:
        try:
            with _interruptible():
                line = input("> ").strip()
        except EOFError:
            typer.echo()
            return
        except KeyboardInterrupt:
            typer.echo(f"\n{_HELP}.", err=True)
            continue
        if line == "/exit":
            return
        if line == "/reset":
            history.clear()
        elif line.startswith("/"):
            typer.echo(f"{_HELP}.", err=True)
        elif line:
            _turn(partner, history, line)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Have ``input`` see every Ctrl-C.

    CPython's loop around readline looks for one only when a signal interrupts its wait. A Ctrl-C that comes between the
    prompt and the wait would end the user's next line instead, so another signal interrupts the wait now and then.
    """
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, _LOOK_S, _LOOK_S)
    try:
        yield
    finally:
        # The handler stays: without it an alarm that is still on its way would end the process.
        signal.setitimer(signal.ITIMER_REAL, 0)


def _turn(partner: Partner, history: list[dict[str, str]], line: str) -> None:
    asked = [*history, {"role": "user", "content": line}]
    try:
        text = _answer(partner, asked, stoppable=True)
    except Refused as error:
        typer.echo(f"plimsoll: {error.message}", err=True)
        return
    history[:] = [*asked, {"role": "assistant", "content": text}]


def _answer(partner: Partner, messages: list[dict[str, str]], *, stoppable: bool = False) -> str:
    """Print the answer as it comes; what came before a Ctrl-C is the answer if ``stoppable``."""
    texts: list[str] = []
    waiting = _Waiting()
    answer = partner.client.chat(partner.model, messages, partner.temperature)
    with contextlib.closing(answer) as pieces, contextlib.closing(_page()) as page:  # type: ignore[type-var] # it is a generator
        try:
            for piece in pieces:
                if not isinstance(piece, Note):
                    waiting.clear()
                    texts.append(piece)
                    page.show("".join(texts), piece)
                elif not texts:
                    waiting.show(piece)
        except KeyboardInterrupt:
            if not stoppable:
                raise
        finally:
            waiting.clear()
    return "".join(texts)


class _PlainPage:
    """Text as it is, for pipes."""

    def __init__(self) -> None:
        self._shown = False

    def show(self, whole: str, piece: str) -> None:  # noqa: ARG002 - a pipe gets pieces
        self._shown = True
        typer.echo(piece, nl=False)

    def close(self) -> None:
        if self._shown:
            typer.echo()


class _RichPage:
    """Markdown that is rendered anew as it grows; on the terminal from its first word on."""

    def __init__(self) -> None:
        from rich.live import Live  # noqa: PLC0415 - only for a terminal

        self._live = Live(refresh_per_second=10, vertical_overflow="visible")

    def show(self, whole: str, piece: str) -> None:  # noqa: ARG002 - the page is drawn whole
        from rich.markdown import Markdown  # noqa: PLC0415 - as above

        self._live.start()
        self._live.update(Markdown(whole))

    def close(self) -> None:
        self._live.stop()


def _page() -> _PlainPage | _RichPage:
    # A dumb terminal can't draw over what it has shown: rich would hold the answer back to its end.
    drawable = sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")
    return _RichPage() if drawable else _PlainPage()


class _Waiting:
    """One line on the terminal that says what is waited for."""

    def __init__(self) -> None:
        self._shown = 0

    def show(self, text: str) -> None:
        if sys.stderr.isatty():
            self.clear()
            typer.echo(text, nl=False, err=True)
            self._shown = len(text)

    def clear(self) -> None:
        if self._shown:
            typer.echo("\r" + " " * self._shown + "\r", nl=False, err=True)
            self._shown = 0
