"""What ``plimsoll events`` prints: the black box's events as lines for people or as JSON for programs."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import msgspec

from plimsoll.journal import read
from plimsoll.journal.events import KINDS, Event, to_json
from plimsoll.journal.lines import Language, line, local_time
from plimsoll.units import Seconds, quantity


def parse_since(text: str) -> Seconds:
    """``1h``, ``30m``, ``2d`` in seconds. Raises ``ValueError`` saying what is allowed."""
    try:
        return msgspec.convert(text, Seconds, dec_hook=quantity)
    except msgspec.ValidationError as error:
        raise ValueError(f"{text!r}: {str(error)[0].lower()}{str(error)[1:]}") from None


def parse_kind(text: str) -> str:
    """A kind of event, also written with hyphens. Raises ``ValueError`` naming all kinds."""
    kind = text.replace("-", "_").lower()
    if kind not in KINDS:
        raise ValueError(f"{text!r} is no kind of event; there are {', '.join(sorted(KINDS))}")
    return kind


def show(
    path: Path,
    since_s: float,
    *,
    as_json: bool = False,
    kind: str | None = None,
    language: Language = "en",
    out: TextIO | None = None,
) -> int:
    """Print the events of the last ``since_s`` seconds, oldest first; their count comes back.

    Lines hold the local time, the kind and the log's text; JSON is an object per line whose ``time`` is in UTC.
    Raises ``Unavailable`` for a black box that can't be read.
    """
    found = read.events(path, since_s, kind)
    for entry in found:
        text = _json(entry.at, entry.event) if as_json else _line(entry.at, entry.event, language)
        print(text, file=out or sys.stdout)
    return len(found)


def _line(at: float, event: Event, language: Language) -> str:
    return f"{local_time(at)}  {event.kind:<17} {line(event, language)}"


def _json(at: float, event: Event) -> str:
    return to_json(event, time=datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds"))
