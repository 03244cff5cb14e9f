"""Counts requests, tokens and times for the metrics: on the event loop, once per batch of items, never per token."""

import logging
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from plimsoll.actors.replies import Delta, Failed, Finished, ToolCallDelta, Waiting
from plimsoll.engine.protocol import Usage
from plimsoll.http.request_log import EndedRequest, RequestLog, Stages, Texts, stage_of

Labels = tuple[str, ...]

log = logging.getLogger("plimsoll")

FIRST_TOKEN_S = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
GAP_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)


class Distribution:
    """A histogram: how many observations were at most each bound, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.sum = 0.0
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self.sum += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bounds as Prometheus writes them, with the count up to each; the last is all."""
        total, buckets = 0, []
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), float(total)))
        return buckets


class ModelFigures:
    """The tokens and times of one model's requests."""

    def __init__(self) -> None:
        self.prompt_tokens = self.cached_tokens = self.completion_tokens = 0
        self.first_token = Distribution(FIRST_TOKEN_S)
        self.gap = Distribution(GAP_S)
        self.pause = Distribution(FIRST_TOKEN_S)


class Recorder:
    """The figures of all requests since the start; ``http/operations/metrics.py`` shows them.

    ``requests`` counts by API, model and outcome, ``errors`` by code. ``log`` holds the newest requests one by one.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, log: RequestLog | None = None) -> None:
        self.requests: Counter[Labels] = Counter()
        self.errors: Counter[Labels] = Counter()
        self.models: dict[str, ModelFigures] = defaultdict(ModelFigures)
        self.log = log or RequestLog()
        self.clock = clock

    def begin(
        self, api: str, model: str, *, key: str = "", request_id: str = "", texts: Texts | None = None
    ) -> "Record":
        """Count a new request. ``model`` becomes a label of the metrics, so it must be a name that the catalog has.

        ``key`` is the name of the key that it came with. With ``texts`` what is said is kept, too.
        """
        return Record(self, api, model, key=key, request_id=request_id, texts=texts)

    def error(self, code: str) -> None:
        """Count an error that a client got."""
        self.errors[code,] += 1


class Record:
    """Measures one request, from its creation on."""

    def __init__(
        self, recorder: Recorder, api: str, model: str, *, key: str, request_id: str, texts: Texts | None
    ) -> None:
        self._recorder = recorder
        self._api, self._model = api, model
        self._key, self._id, self._texts = key, request_id, texts
        self._figures = recorder.models[model]
        self._clock = recorder.clock
        self._began_s = self._clock()
        self._stages = Stages(self._began_s)
        self._first_token_s: float | None = None
        self._last_s = 0.0
        self._tokens = 0
        self._has_begun = self._ended = False
        self._paused_at: float | None = None
        self._pauses, self._paused_s = 0, 0.0

    def batch(self, items: list[Any]) -> None:
        """Note the items that have just come for the request. Nothing is counted after its ending."""
        if not items or self._ended:
            return
        last = items[-1]
        if self._texts:
            self._texts.add("".join(item.text for item in items if isinstance(item, Delta)))
        if type(last) is Delta:  # nearly every batch of a stream
            self._generated(last.tokens, self._clock())
        elif type(last) is not Waiting:
            self._note_rare(items, last)
        else:
            now = self._clock()
            self._stages.enter(stage_of(last.stage), now)
            if last.stage == "resume" and self._paused_at is None:
                self._paused_at = now

    def abandoned(self) -> None:
        """The client does not wait for the answer any more."""
        if not self._ended:
            usage = Usage(completion_tokens=self._tokens)
            self._end("cancelled", usage, self._clock(), "the client did not wait for the answer")

    def _note_rare(self, items: list[Any], last: Any) -> None:
        tokens, has_called, now = self._tokens, False, self._clock()
        for item in items:
            if isinstance(item, Delta):
                tokens = item.tokens
            elif isinstance(item, ToolCallDelta):
                has_called = True
        if isinstance(last, Finished):
            tokens = max(tokens, last.usage.completion_tokens)
        if has_called or tokens > self._tokens:
            self._generated(tokens, now)
        if isinstance(last, Finished):
            self._figures.prompt_tokens += last.usage.prompt_tokens
            self._figures.cached_tokens += last.usage.cached_tokens
            self._end(last.reason, last.usage, now)
            _say_what_was_reused(self._model, last.usage)
        elif isinstance(last, Failed):
            self._end("failed", Usage(completion_tokens=self._tokens), now, f"{last.error.code}: {last.error.message}")

    def _generated(self, tokens: int, now: float) -> None:
        new, figures = tokens - self._tokens, self._figures
        figures.completion_tokens += new
        if self._paused_at is not None:
            self._resumed(now - self._paused_at)
        if not self._has_begun:
            self._has_begun = True
            self._first_token_s = now - self._began_s
            figures.first_token.observe(self._first_token_s)
        elif new:
            # Tokens that come together are spread evenly over the time since the ones before.
            figures.gap.observe((now - self._last_s) / new, new)
        self._last_s, self._tokens = now, tokens
        self._stages.enter("decode", now)

    def _resumed(self, paused_s: float) -> None:
        """A new worker goes on with it."""
        self._figures.pause.observe(paused_s)
        self._pauses += 1
        self._paused_s += paused_s
        self._last_s += paused_s  # a pause is no time between two tokens
        self._paused_at = None

    def _end(self, outcome: str, usage: Usage, now: float, why: str = "") -> None:
        self._ended = True
        recorder = self._recorder
        recorder.requests[self._api, self._model, outcome] += 1
        # By place: by name it takes twice as long, and this is most of what a request costs here.
        ended = EndedRequest(
            self._id,
            time.time(),
            self._key,
            self._api,
            self._model,
            outcome,
            why,
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.cached_tokens,
            usage.cached_from or None,
            usage.left_at,
            now - self._began_s,
            self._first_token_s,
            self._pauses,
            self._paused_s,
            self._stages.end(now),
        )
        recorder.log.add(ended, self._texts)


def _say_what_was_reused(model: str, usage: Usage) -> None:
    """Log how much of the prompt was reused, and where the prompt left what was known."""
    if not usage.prompt_tokens:
        return
    log.info(
        "%s: %d of %d prompt tokens reused%s; the prompt leaves the closest known one at token %d",
        *(model, usage.cached_tokens, usage.prompt_tokens),
        f" from {usage.cached_from}" if usage.cached_from else "",
        usage.left_at,
    )
    if usage.left_text:
        log.debug("%s: around that token: %r", model, usage.left_text)
