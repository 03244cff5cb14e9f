"""What requests took: counted on the event loop, once per batch of items, never per token."""

import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from plimsoll.actors.messages import Delta, Failed, Finished, ToolCallDelta, Waiting

Labels = tuple[str, ...]

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


class Figures:
    """What the requests of one model took."""

    def __init__(self) -> None:
        self.prompt_tokens = self.cached_tokens = self.completion_tokens = 0
        self.first_token = Distribution(FIRST_TOKEN_S)
        self.gap = Distribution(GAP_S)


class Recorder:
    """The figures of all requests since the start; read by ``http/operations/metrics.py``.

    ``requests`` by API, model and outcome; ``errors`` by code; ``models`` by name.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.requests: Counter[Labels] = Counter()
        self.errors: Counter[Labels] = Counter()
        self.models: dict[str, Figures] = defaultdict(Figures)
        self.clock = clock

    def begin(self, api: str, model: str) -> "Record":
        """``model`` has to be a name of the catalog: it becomes a label."""
        return Record(self, api, model)

    def error(self, code: str) -> None:
        """An error was answered."""
        self.errors[code,] += 1


class Record:
    """One request, from now on."""

    def __init__(self, recorder: Recorder, api: str, model: str) -> None:
        self._recorder = recorder
        self._api, self._model = api, model
        self._figures = recorder.models[model]
        self._clock = recorder.clock
        self._began_s = self._clock()
        self._last_s = 0.0
        self._tokens = 0
        self._has_begun = self._ended = False

    def batch(self, items: list[Any]) -> None:
        """What came for it at this moment; nothing after its ending is counted."""
        if not items or self._ended:
            return
        last = items[-1]
        if type(last) is Delta:  # by far the most, and all that costs in a stream
            self._generated(last.tokens)
        elif type(last) is not Waiting:
            self._odd(items, last)

    def left(self) -> None:
        """Nobody waits for it any more."""
        if not self._ended:
            self._end("cancelled")

    def _odd(self, items: list[Any], last: Any) -> None:
        tokens = next((item.tokens for item in reversed(items) if isinstance(item, Delta)), self._tokens)
        if isinstance(last, Finished):
            tokens = max(tokens, last.usage.completion_tokens)
        if tokens > self._tokens or any(isinstance(item, ToolCallDelta) for item in items):
            self._generated(tokens)
        if isinstance(last, Finished):
            self._figures.prompt_tokens += last.usage.prompt_tokens
            self._figures.cached_tokens += last.usage.cached_tokens
            self._end(last.reason)
        elif isinstance(last, Failed):
            self._end("failed")

    def _generated(self, tokens: int) -> None:
        now, new, figures = self._clock(), tokens - self._tokens, self._figures
        figures.completion_tokens += new
        if not self._has_begun:
            self._has_begun = True
            figures.first_token.observe(now - self._began_s)
        elif new:
            # What came together came over the time since the last: the mean stands for each.
            figures.gap.observe((now - self._last_s) / new, new)
        self._last_s, self._tokens = now, tokens

    def _end(self, outcome: str) -> None:
        self._ended = True
        self._recorder.requests[self._api, self._model, outcome] += 1
