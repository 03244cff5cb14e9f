"""``plimsoll bench``: what one model gives on the running server, as its clients would see it."""

import threading
import time
from collections.abc import Sequence
from statistics import median
from typing import Annotated, Any, NamedTuple

import typer

from plimsoll.cli.chat import AnyModel, pick_model
from plimsoll.cli.client import Client, Note, Refused
from plimsoll.cli.link import AsJson, Link, with_link
from plimsoll.cli.output import print_json, progress_bar, table
from plimsoll.errors import PlimsollError

_MAX_STREAMS = 64
# Long enough that reading it takes a time that can be seen, and answered by all models at some length.
_PROMPT = "Reader {number}: explain in plain words and many sentences how a ship is loaded, and why it does not sink."


@with_link
def bench(
    link: Link,
    model: AnyModel = None,
    streams: Annotated[str, typer.Option(help="Answers side by side, one row for each.", metavar="N,N")] = "1,4,8",
    tokens: Annotated[int, typer.Option(help="Length of each answer.", min=2, max=4096)] = 64,
    *,
    as_json: AsJson = False,
) -> None:
    """Measure a model on the running server: time to the first token, tokens per second."""
    try:
        widths = parse_streams(streams)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    name = model or pick_model(link.client)
    rows = run(link.client, name, widths, tokens)
    print_json({"model": name, "tokens": tokens, "rows": [row.as_json() for row in rows]}) if as_json else typer.echo(
        bench_table(rows)
    )


class Answer(NamedTuple):
    """One answer's times, on the monotonic clock."""

    asked_s: float
    first_s: float
    last_s: float
    tokens: int


class Row(NamedTuple):
    """Answers side by side: seconds to the first token, tokens per second of one stream and of all."""

    streams: int
    first_token_s: float
    worst_first_token_s: float
    per_stream: float
    total: float
    tokens: int

    def as_json(self) -> dict[str, Any]:
        """Rounded to what can be believed."""
        return {
            "streams": self.streams,
            "first_token_ms": round(1000 * self.first_token_s, 1),
            "worst_first_token_ms": round(1000 * self.worst_first_token_s, 1),
            "tokens_per_s_each": round(self.per_stream, 2),
            "tokens_per_s_all": round(self.total, 2),
            "tokens": self.tokens,
        }


def parse_streams(text: str) -> list[int]:
    """``1,4,8``. Raises ``ValueError`` saying what is allowed."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= _MAX_STREAMS for part in parts):
        raise ValueError(f"{text!r}: expected numbers from 1 to {_MAX_STREAMS} like 1,4,8")
    return [int(part) for part in parts]


def run(client: Client, model: str, widths: Sequence[int], tokens: int) -> list[Row]:
    """A row for each of ``widths``. Raises as ``Client`` does, and ``Refused`` for a model that says nothing."""
    rows: list[Row] = []
    with progress_bar(model) as progress:
        progress("load", 0, 0)
        _ask(client, model, 0, 2)
        for number, width in enumerate(widths):
            progress(f"{width} at once ({number + 1} of {len(widths)})", 0, 0)
            # Numbers that no earlier row had, so that no prompt is in the cache.
            rows.append(
                summary(_side_by_side(client, model, range(100 * (number + 1), 100 * (number + 1) + width), tokens))
            )
    return rows


def summary(answers: Sequence[Answer]) -> Row:
    """What the answers of one row say together; a stream's speed is that of its tokens after the first."""
    waits = [one.first_s - one.asked_s for one in answers]
    speeds = [(one.tokens - 1) / (one.last_s - one.first_s) for one in answers if one.last_s > one.first_s]
    took_s = max(one.last_s for one in answers) - min(one.asked_s for one in answers)
    count = sum(one.tokens for one in answers)
    return Row(len(answers), median(waits), max(waits), median(speeds or [0.0]), count / max(took_s, 1e-9), count)


def bench_table(rows: Sequence[Row]) -> str:
    """The rows for people."""
    head = ["STREAMS", "FIRST TOKEN", "WORST", "TOK/S EACH", "TOK/S ALL"]
    cells = [
        [
            str(row.streams),
            f"{1000 * row.first_token_s:.0f} ms",
            f"{1000 * row.worst_first_token_s:.0f} ms",
            f"{row.per_stream:.1f}",
            f"{row.total:.1f}",
        ]
        for row in rows
    ]
    return table(head, cells, right=",".join(head))


def _side_by_side(client: Client, model: str, numbers: Sequence[int], tokens: int) -> list[Answer]:
    answers: list[Answer] = []
    errors: list[PlimsollError] = []

    def one(number: int) -> None:
        try:
            answers.append(_ask(client, model, number, tokens))
        except PlimsollError as error:
            errors.append(error)

    # Daemons: Ctrl-C need not wait for their answers, which the server ends with the connections.
    threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return answers


def _ask(client: Client, model: str, number: int, tokens: int) -> Answer:
    message = {"role": "user", "content": _PROMPT.format(number=number)}
    body = {"model": model, "messages": [message], "max_completion_tokens": tokens, "temperature": 0, "stream": True}
    asked_s = time.monotonic()
    first_s = last_s = 0.0
    count = 0
    for chunk in client.chunks({**body, "stream_options": {"include_usage": True}}):
        if isinstance(chunk, Note):
            continue
        if usage := chunk.get("usage"):
            count = usage["completion_tokens"]
        if any(_says(choice["delta"]) for choice in chunk["choices"]):
            last_s = time.monotonic()
            first_s = first_s or last_s
    if not first_s:
        raise Refused(f"{model} answered without a word, so there is nothing to measure")
    return Answer(asked_s, first_s, last_s, count)


def _says(delta: dict[str, Any]) -> bool:
    return bool(delta.get("content") or delta.get("reasoning_content"))
