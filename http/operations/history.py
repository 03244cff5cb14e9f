"""``GET /admin/history``: samples and events out of the black box."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, get_args

import msgspec
from sanic import HTTPResponse

from plimsoll.catalog.disk import Place
from plimsoll.errors import BadRequest
from plimsoll.http.app_state import App, AppState
from plimsoll.http.disk_reads import read_disk
from plimsoll.http.errors import respond
from plimsoll.http.limits.body_budget import HttpRequest
from plimsoll.journal import read
from plimsoll.journal.events import Entry, to_json
from plimsoll.journal.journal import Journal
from plimsoll.journal.lines import Language, line
from plimsoll.journal.show import parse_kind, parse_since

_T = TypeVar("_T")
PARTS = ("samples", "events")
LANGUAGES: tuple[Language, ...] = get_args(Language)
_DEFAULT_SINCE_S = 3600.0
_DEFAULT_POINTS = 1000
MOST_POINTS = 10_000
# Before it is read the black box writes what it has, for at most this time: its file may be locked.
_FLUSH_S = 0.5
_READ_S = 15.0


def add_routes(app: App, state: AppState) -> None:
    """Register this module's endpoints."""
    journal = state.system.journal

    async def history(request: HttpRequest) -> HTTPResponse:
        asked = _Query.of(request)
        return respond(200, await read_journal(journal, lambda: _history(journal, asked)))

    app.add_route(history, "/admin/history", methods=["GET", "HEAD"], name="admin_history")


async def read_journal(journal: Journal, work: Callable[[], _T]) -> _T:
    """The result of ``work``, which reads the black box. Raises ``Unavailable`` if its disk does not answer."""
    box = journal.blackbox
    return await read_disk(Place(str(box.path), str(box.path.parent)), work, _READ_S) if box else work()


class _Query(msgspec.Struct, frozen=True):
    since_s: float
    until_s: float
    points: int
    kind: str | None
    parts: tuple[str, ...]
    language: Language | None

    @classmethod
    def of(cls, request: HttpRequest) -> "_Query":
        since_s = _seconds(request, "since", _DEFAULT_SINCE_S)
        until_s = _seconds(request, "until", 0.0)
        if since_s <= until_s:
            text = f"since ({since_s:g} s ago) has to be before until ({until_s:g} s ago)"
            raise BadRequest(f"{text}; both count back from now, in seconds or as 30m, 2h, 7d", param="since")
        points = str(request.args.get("points", _DEFAULT_POINTS))
        if not points.isdecimal() or not 1 <= int(points[:9]) <= MOST_POINTS:
            raise BadRequest(f"points is {points[:60]!r}, but must be 1 to {MOST_POINTS}", param="points")
        try:
            kind = parse_kind(asked) if (asked := request.args.get("kind")) else None
        except ValueError as error:
            raise BadRequest(f"kind: {error}", param="kind") from None
        only = request.args.get("only")
        if only is not None and only not in PARTS:
            raise BadRequest(f"only is {only[:60]!r}, but must be {' or '.join(PARTS)}", param="only")
        return cls(since_s, until_s, int(points), kind, PARTS if only is None else (only,), asked_language(request))


def asked_language(request: HttpRequest) -> Language | None:
    """In which language events are asked for; None is the log's."""
    asked = request.args.get("language")
    if asked is not None and asked not in LANGUAGES:
        raise BadRequest(f"language is {asked[:60]!r}, but must be {' or '.join(LANGUAGES)}", param="language")
    language: Language | None = asked
    return language


def _seconds(request: HttpRequest, name: str, default: float) -> float:
    text = request.args.get(name)
    try:
        return default if text is None else float(parse_since(text))
    except ValueError:
        example = "seconds before now, like 3600, or 30m, 2h, 7d"
        raise BadRequest(f"{name} is {text[:60]!r}, but must be {example}", param=name) from None


def _history(journal: Journal, asked: _Query) -> dict[str, Any]:
    samples: list[read.SampleRow] = []
    entries: Sequence[Entry] = []
    if box := journal.blackbox:
        box.flush(_FLUSH_S)
        # A week of samples takes a third of a second to go through.
        if "samples" in asked.parts:
            samples = read.samples(box.path, asked.since_s, asked.points, until_s=asked.until_s)
        if "events" in asked.parts:
            entries = read.events(box.path, asked.since_s, asked.kind, until_s=asked.until_s, newest=asked.points)
    elif "events" in asked.parts:
        now = journal.now()
        entries = [
            entry
            for entry in journal.recent()
            if asked.until_s <= now - entry.at <= asked.since_s and asked.kind in (None, entry.event.kind)
        ][-asked.points :]
    return {
        "since": asked.since_s,
        "until": asked.until_s,
        "samples": [
            [round(one.at, 3), round(one.percent, 2), one.level, one.footprints, one.used, one.total] for one in samples
        ],
        "events": [entry_body(entry, asked.language or journal.language) for entry in entries],
    }


def entry_body(entry: Entry, language: Language) -> dict[str, Any]:
    """The body of one event, with its log line; ``event`` holds the fields of its kind."""
    event = entry.event
    own = msgspec.json.decode(to_json(event))
    kind = own.pop("kind")
    return {
        "id": entry.id,
        "at": round(entry.at, 3),
        "kind": kind,
        "severity": logging.getLevelName(event.severity).lower(),
        # A line may hold the name of another process, which may not be valid text.
        "text": line(event, language).encode("utf-8", "replace").decode(),
        "event": own,
    }
