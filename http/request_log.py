"""The newest requests one by one: who asked which model, where the time went, how it ended."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec

from plimsoll.config import RequestsConfig
from plimsoll.engine.protocol import ChatRequest, Request

NEWEST = 1000
"""How many requests that have ended are kept one by one."""
MOST_SPANS = 40
TEXT_CHARS = 16_384
"""How much of a prompt (its end) and of an answer (its beginning) is kept, where ``requests.keep_texts`` is set."""

Stage = Literal["queue", "load", "read", "decode", "pause"]
_STAGES: dict[str, Stage] = {"queue": "queue", "prefill": "read", "memory": "pause", "resume": "pause"}


def stage_of(waiting: str) -> Stage:
    """The stage of a request that waits for this: what a load goes through (fetch, convert, read) is one stage."""
    return _STAGES.get(waiting, "load")


class Span(msgspec.Struct, frozen=True, array_like=True):
    """One stretch of a request: its stage, when it began after the request did, how long it lasted; in seconds."""

    stage: Stage
    start_s: float
    length_s: float


class Stages:
    """In which stage a request has been when. It begins with reading: a loaded model reads a prompt at once."""

    def __init__(self, now_s: float) -> None:
        self._began_s = self._since_s = now_s
        self._stage: Stage = "read"
        self._spans: list[Span] = []

    def enter(self, stage: Stage, now_s: float) -> None:
        """The request is in ``stage`` from now on."""
        if stage != self._stage:
            self._close(now_s)
            self._stage, self._since_s = stage, now_s

    def end(self, now_s: float) -> list[Span]:
        """The request has ended. Of very many spans the later ones are left out."""
        self._close(now_s)
        return self._spans

    def _close(self, now_s: float) -> None:
        if now_s > self._since_s and len(self._spans) < MOST_SPANS:
            self._spans.append(Span(self._stage, self._since_s - self._began_s, now_s - self._since_s))


class RequestFigures(msgspec.Struct, frozen=True):
    """What is told of a request that has ended; ``ended_at`` in seconds since the epoch.

    ``key`` is empty where there are no keys. ``outcome`` is stop, length, tool_calls, cancelled or failed, and ``why``
    says more where it did not finish. ``first_token_s`` is None where no token came. ``left_at`` is the token at which
    the prompt left the closest known one.
    """

    id: str
    ended_at: float
    key: str
    api: str
    model: str
    outcome: str
    why: str
    prompt_tokens: int
    completion_tokens: int
    reused_tokens: int
    reused_from: str | None
    left_at: int
    seconds: float
    first_token_s: float | None
    resumed: int
    paused_s: float


class EndedRequest(RequestFigures, frozen=True):
    """A request that has ended, with the stretches of its time."""

    spans: list[Span]


class Texts(msgspec.Struct):
    """What was asked and answered, both cut short."""

    prompt: str
    answer: str = ""

    def add(self, text: str) -> None:
        """More of the answer."""
        if len(self.answer) < TEXT_CHARS:
            self.answer += text[: TEXT_CHARS - len(self.answer)]


def texts_of(request: Request, config: RequestsConfig) -> Texts | None:
    """The end of what is asked, where texts are to be kept."""
    if not config.keep_texts:
        return None
    if not isinstance(request, ChatRequest):
        return Texts("")
    asked = request.messages if request.prompt is None else request.prompt
    return Texts(msgspec.json.encode(asked).decode()[-TEXT_CHARS:])


class RequestLog:
    """The newest requests that have ended, the newest last, and the texts of those that have some.

    ``count_tokens`` gets each of them, for the sums of a day.
    """

    def __init__(self, count_tokens: Callable[[EndedRequest], None] = lambda _ended: None) -> None:
        self.newest: deque[tuple[EndedRequest, Texts | None]] = deque(maxlen=NEWEST)
        self._count_tokens = count_tokens

    def add(self, ended: EndedRequest, texts: Texts | None) -> None:
        self.newest.append((ended, texts))
        self._count_tokens(ended)

    def find(self, request_id: str) -> tuple[EndedRequest, Texts | None] | None:
        """The request of that id, or whose id begins so where it is the newest such."""
        return next((one for one in reversed(self.newest) if one[0].id.startswith(request_id)), None)

    def select(self, **wanted: str | None) -> Iterator[EndedRequest]:
        """The requests whose fields have the ``wanted`` values, where these are not None; the newest first."""
        asked = [(name, value) for name, value in wanted.items() if value is not None]
        for ended, _ in reversed(self.newest):
            if all(getattr(ended, name) == value for name, value in asked):
                yield ended


def row_of(ended: EndedRequest) -> dict[str, Any]:
    """A request as one row: the time in each stage in the place of the spans. Times are rounded only here."""
    row: dict[str, Any] = msgspec.structs.asdict(ended)
    del row["spans"]
    for name, digits in (("ended_at", 3), ("seconds", 3), ("first_token_s", 4), ("paused_s", 3)):
        row[name] = None if row[name] is None else round(row[name], digits)
    stages = {"queue": 0.0, "load": 0.0, "read": 0.0, "decode": 0.0, "pause": 0.0}
    for span in ended.spans:
        stages[span.stage] += span.length_s
    row["stages_s"] = {stage: round(length_s, 4) for stage, length_s in stages.items()}
    return row


def spans_of(ended: EndedRequest) -> list[Span]:
    """The stretches of a request's time, rounded."""
    return [Span(one.stage, round(one.start_s, 4), round(one.length_s, 4)) for one in ended.spans]
