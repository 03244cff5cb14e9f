"""``plimsoll chat``: a conversation in the terminal, or one answer for a pipe."""

import contextlib
import sys

import typer

from plimsoll.cli.client import Client, Note, Refused

_HELP = "/reset forgets the conversation, /exit (or Ctrl-D) leaves, Ctrl-C stops an answer"


def pick_model(client: Client) -> str:
    """The first model the server offers. Raises ``Refused`` where there is none."""
    names = [model["id"] for model in client.get("/v1/models")["data"]]
    if not names:
        raise Refused("the server offers no model; add one to models.entries")
    return str(names[0])


def once(client: Client, model: str, prompt: str) -> None:
    """Print one answer. Ctrl-C ends the program, as for any filter."""
    _answer(client, model, [{"role": "user", "content": prompt}])


def converse(client: Client, model: str) -> None:
    """Talk until the user leaves; an error of the server ends one answer and not the conversation."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401, PLC0415 - line editing for input()

    typer.echo(f"{model} at {client.url}. {_HELP}.", err=True)
    history: list[dict[str, str]] = []
    while True:
        try:
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
            _turn(client, model, history, line)


def _turn(client: Client, model: str, history: list[dict[str, str]], line: str) -> None:
    asked = [*history, {"role": "user", "content": line}]
    try:
        text = _answer(client, model, asked, stoppable=True)
    except Refused as error:
        typer.echo(f"plimsoll: {error.message}", err=True)
        return
    history[:] = [*asked, {"role": "assistant", "content": text}]


def _answer(client: Client, model: str, messages: list[dict[str, str]], *, stoppable: bool = False) -> str:
    """Print the answer as it comes; what came before a Ctrl-C is the answer if ``stoppable``."""
    texts: list[str] = []
    waiting = _Waiting()
    with contextlib.closing(client.chat(model, messages)) as pieces:  # type: ignore[type-var] # it is a generator
        try:
            for piece in pieces:
                if not isinstance(piece, Note):
                    waiting.clear()
                    texts.append(piece)
                    typer.echo(piece, nl=False)
                elif not texts:
                    waiting.show(piece)
        except KeyboardInterrupt:
            if not stoppable:
                raise
        finally:
            waiting.clear()
            if texts:
                typer.echo()
    return "".join(texts)


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
