"""What the live feed, the history, the newest requests and the metrics answer, for the OpenAPI document."""

from typing import Any, Literal

import msgspec

from plimsoll.http.downloads import Download
from plimsoll.http.openapi.openai import Error
from plimsoll.http.openapi.schema import Content, Operation, Parameter, Told
from plimsoll.http.openapi.server import Level, ModelsTold, get
from plimsoll.http.operations import feed, history
from plimsoll.http.request_log import RequestFigures, Span, Texts
from plimsoll.journal.events import KINDS
from plimsoll.journal.read import DayTokens


class Thresholds(Told):
    warning: float
    critical: float
    emergency: float


class HelloEvent(Told):
    """Times in seconds since the epoch; ``last_event`` is the id of the latest journal event, 0 before the first."""

    version: str
    started_at: float
    now: float
    pid: int
    thresholds: Thresholds
    limit_gb: float | None
    last_event: int


class SourceTold(Told):
    """Bytes, and percent used."""

    percent: float
    used: int
    total: int


class SampleEvent(Told):
    """Bytes and percent; ``source`` is the fullest one, whose figures are shown beside it."""

    at: float
    level: Level
    percent: float | None
    source: str | None
    sources: dict[str, SourceTold]
    used: int | None
    total: int | None
    front: int
    models: dict[str, int]
    lag_ms: float | None
    admission: Literal["open", "closed"]
    status: Literal["healthy", "warning", "degraded", "critical"]
    problems: list[str]
    seconds_to_critical: float | None


class PullsEvent(Told):
    """The downloads that run and the newest that have ended; ``done`` or ``error`` says how."""

    pulls: list[Download]


class JournalEvent(Told):
    """``event`` holds the fields of its kind; ``text`` is the log's line."""

    id: int
    at: float
    kind: str
    severity: Literal["info", "warning", "error"]
    text: str
    event: dict[str, Any]


class History(Told):
    """Samples are rows of time, percent, level (0 to 3), bytes of ours, bytes used, bytes in all."""

    since: float
    until: float
    samples: list[tuple[float, float, int, int, int, int]]
    events: list[JournalEvent]


class RequestTold(RequestFigures, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A request that has ended; times in seconds, ``ended_at`` since the epoch."""

    stages_s: dict[str, float]


class OneRequestTold(RequestTold, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``spans`` are the stretches of its time; ``texts`` are there for administrators, where texts are kept."""

    spans: list[Span]
    texts: Texts | msgspec.UnsetType = msgspec.UNSET


class RequestsTold(Told):
    requests: list[RequestTold]


class TokensTold(Told):
    days: list[DayTokens]


_TIME = {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*(ms|s|m|h|d)?\s*$"}
_KINDS = {"type": "string", "enum": sorted(KINDS)}
_LANGUAGE = Parameter(
    "language", "That of the events' texts; the log's where it is not given.", {"enum": history.LANGUAGES}
)

OPERATIONS = (
    Operation(
        path="/metrics",
        about="Counters and gauges as Prometheus reads them; OpenMetrics where `Accept` asks for it",
        tag="Server",
        error=Error,
        answers={200: (Content("text/plain"),)},
    ),
    Operation(
        path="/admin/events",
        about="The live feed: events named hello, sample, models, pulls and journal; Last-Event-ID is honoured",
        tag="Server",
        error=Error,
        parameters=(
            Parameter("only", f"Kinds with commas between them: {', '.join(feed.KINDS)}."),
            Parameter("after", "Send the journal events after this id first.", {"type": "integer", "minimum": 0}),
            _LANGUAGE,
        ),
        answers={200: (Content("text/event-stream", (HelloEvent, SampleEvent, ModelsTold, PullsEvent, JournalEvent)),)},
    ),
    get(
        "/admin/history",
        "Samples and events of the past",
        History,
        parameters=(
            Parameter("since", "Begin, before now: seconds, or 30m, 2h, 7d.", _TIME),
            Parameter("until", "End, before now.", _TIME),
            Parameter("points", "Rows at most.", {"type": "integer", "minimum": 1, "maximum": history.MOST_POINTS}),
            Parameter("kind", "Events of this kind only.", _KINDS),
            Parameter("only", "The other list stays empty.", {"enum": history.PARTS}),
            _LANGUAGE,
        ),
    ),
    get(
        "/admin/requests",
        "The newest requests that have ended, the newest first",
        RequestsTold,
        parameters=(
            *(Parameter(name, f"Only those of this {name}.") for name in ("model", "key", "api", "outcome")),
            Parameter("limit", "How many.", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 200}),
        ),
    ),
    get(
        "/admin/requests/{id}",
        "One request by the beginning of its id: where its time went",
        OneRequestTold,
        parameters=(Parameter("id", "The request's id.", required=True),),
    ),
    get(
        "/admin/tokens",
        "The tokens of the last days, by day, model and key",
        TokensTold,
        parameters=(Parameter("days", "How many.", {"type": "integer", "minimum": 1, "maximum": 366, "default": 30}),),
    ),
)
