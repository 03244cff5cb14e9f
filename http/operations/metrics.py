"""``GET /metrics``: the text that Prometheus reads, made at each scrape."""

import os
import platform
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from sanic import HTTPResponse
from sanic.response import raw

from plimsoll import __version__
from plimsoll.http.app_state import App, AppState
from plimsoll.http.left_out import LeftOut
from plimsoll.http.limits.body_budget import HttpRequest
from plimsoll.http.operations.health import Condition, condition, read_status
from plimsoll.http.recorder import Distribution, Labels, Recorder
from plimsoll.journal import events as e

LOAD_S = (0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
# Reasons are sentences for people. As a label each becomes one of these words, by its beginning.
_REASONS = {
    "idle": "idle",
    "not kept alive": "keep_alive",
    "asked for": "asked",
    "to make room": "make_room",
    "before loading": "make_room",
    "high memory use": "warning",
    "critical": "critical",
    "memory critical": "critical",
    "health check at critical": "critical",
    "emergency": "emergency",
    "memory emergency": "emergency",
    "MemoryError": "out_of_memory",
    "the configuration changed": "reload",
    "the server stops": "shutdown",
}
_DEATHS: dict[type[e.Event], str] = {
    e.OutOfMemory: "out_of_memory",
    e.WorkerHung: "hung",
    e.WorkerStuck: "stuck",
    e.WorkerKilled: "unresponsive",
}


class EventCounts:
    """Counts the journal's events, which calls ``note`` with one event at a time."""

    def __init__(self) -> None:
        self.events: Counter[Labels] = Counter()
        self.loads: Counter[Labels] = Counter()
        self.load_seconds: dict[Labels, Distribution] = defaultdict(lambda: Distribution(LOAD_S))
        self.load_failures: Counter[Labels] = Counter()
        self.loads_refused: Counter[Labels] = Counter()
        self.unloads: Counter[Labels] = Counter()
        self.reclaim_expected: Counter[Labels] = Counter()
        self.reclaim_freed: Counter[Labels] = Counter()
        self.deaths: Counter[Labels] = Counter()
        self.cleanups: Counter[Labels] = Counter()
        self.level_changes: Counter[Labels] = Counter()

    def note(self, entry: e.Entry) -> None:
        self.events[entry.event.kind,] += 1
        match entry.event:
            case e.ModelLoaded() as event:
                self.loads[event.model,] += 1
                self.load_seconds[event.model,].observe(event.seconds)
            case e.LoadFailed() as event:
                self.load_failures[event.model,] += 1
            case e.LoadRefused() as event:
                self.loads_refused[event.model,] += 1
            case e.ModelUnloaded() as event:
                self.unloads[event.model, unload_reason(event.reason)] += 1
                self.reclaim_expected[()] += event.expected_bytes
                self.reclaim_freed[()] += max(0, event.freed_bytes)
            case e.WorkerDied() as event:
                self.deaths[event.model, death_class(event.how)] += 1
            case e.OutOfMemory() | e.WorkerHung() | e.WorkerStuck() | e.WorkerKilled() as event:
                self.deaths[event.model, _DEATHS[type(event)]] += 1
            case e.CleanupStarted() as event:
                self.cleanups["aggressive" if event.aggressive else "normal",] += 1
            case e.LevelChanged() as event:
                self.level_changes[str(event.level),] += 1


def unload_reason(text: str) -> str:
    """The label for the reason of an unload."""
    return next((label for begin, label in _REASONS.items() if text.startswith(begin)), "other")


def death_class(how: str) -> str:
    """The label for how a worker died: ``signal 11 (SIGSEGV)`` is ``sigsegv``, an exit code is ``exit``."""
    signal = re.search(r"\((SIG\w+)\)", how)
    return signal[1].lower() if signal else "exit"


Values = Mapping[Any, float]
"""Figures by the values of their labels, a tuple of strings."""


def add_routes(app: App, state: AppState) -> None:
    """Register the endpoint, and count the journal's events from now on."""
    counts = EventCounts()
    state.system.journal.subscribe(counts.note)

    async def metrics(request: HttpRequest) -> HTTPResponse:
        now = condition(await read_status(state))
        registry = CollectorRegistry()
        registry.register(Scrape(state, counts, now))
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return raw(encode(registry), content_type=content_type)

    app.add_route(metrics, "/metrics", methods=["GET", "HEAD"], name="metrics")


class Scrape(Collector):
    """Every metric at one moment. A metric without a value yet still has its name and its help text."""

    def __init__(self, state: AppState, counts: EventCounts, now: Condition) -> None:
        self._state = state
        self._counts = counts
        self._now = now

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily(
            "plimsoll_build", "Which version runs.", {"version": __version__, "python": platform.python_version()}
        )
        yield _gauge("start_time_seconds", "When the server began, since the epoch.", {(): self._state.created})
        yield from _of_requests(self._state.recorder, self._state.left_out)
        yield from _of_events(self._counts)
        yield from self._of_front()
        yield from self._of_memory()
        yield from self._of_models()

    def _of_front(self) -> Iterator[Metric]:
        sample, bodies, slots = self._now.sample, self._state.bodies, self._state.slots
        held = {(): float(sample.footprints[os.getpid()])} if sample and os.getpid() in sample.footprints else {}
        yield _gauge("front_footprint_bytes", "Memory of the front process.", held)
        yield _gauge("connections", "Open connections.", {(): float(slots.taken)})
        yield _gauge("body_bytes", "What request bodies take, until their answers end.", {(): float(bodies.held)})
        yield _gauge("body_limit_bytes", "What they may take together now.", {(): float(bodies.room)})
        yield _gauge("bodies_waiting", "Requests whose bodies wait to be read.", {(): float(bodies.waiting)})

    def _of_memory(self) -> Iterator[Metric]:
        sample, known = self._now.sample, self._now.known
        readings = sample.readings if sample else ()
        memory = self._state.config.memory
        thresholds = {
            ("warning",): memory.warning_percent,
            ("critical",): memory.critical_percent,
            ("emergency",): memory.emergency_percent,
        }
        used = {(one.source,): one.percent for one in readings}
        yield _gauge("memory_used_percent", "Memory used, of each source.", used, "source")
        used_bytes = {(one.source,): float(one.used) for one in readings}
        yield _gauge("memory_used_bytes", "Memory used, of each source.", used_bytes, "source")
        total_bytes = {(one.source,): float(one.total) for one in readings}
        yield _gauge("memory_total_bytes", "Memory there is, of each source.", total_bytes, "source")
        yield _gauge("memory_threshold_percent", "Where each level begins.", thresholds, "level")
        level = {(): float(known.level)} if known else {}
        yield _gauge("memory_level", "0 normal, 1 warning, 2 critical, 3 emergency.", level)
        lag = {(): known.sampler_lag_s} if known else {}
        yield _gauge("sampler_lag_seconds", "How late the latest sample was begun.", lag)
        is_open = {(): float(known.admission == "open")} if known else {}
        yield _gauge("admission_open", "1 while models may be loaded.", is_open)

    def _of_models(self) -> Iterator[Metric]:
        known = self._now.known
        models = known.models if known else []
        held = {(name,): float(size) for name, size in known.footprints.items()} if known else {}
        yield _gauge("supervisor_up", "1 if the Supervisor answers.", {(): float(known is not None)})
        yield _gauge("problems", "How many problems /health names.", {(): float(len(self._now.problems))})
        yield _gauge("model_footprint_bytes", "Memory of the model's worker.", held, "model")
        active = {(one.name,): float(one.active) for one in models}
        yield _gauge("model_active", "Requests that the worker runs.", active, "model")
        queued = {(one.name,): float(one.queued) for one in models}
        yield _gauge("model_queued", "Requests that wait for the model.", queued, "model")
        paused = {(one.name,): float(one.paused) for one in models}
        yield _gauge("model_paused", "Of these, requests that have lost a worker.", paused, "model")
        states = {(one.name, str(one.state)): 1.0 for one in models}
        yield _gauge("model_state", "1 for the state that the model is in.", states, "model", "state")


def _of_requests(recorder: Recorder, left_out: LeftOut) -> Iterator[Metric]:
    yield _counter("requests", "Requests that ended.", recorder.requests, "api", "model", "outcome")
    yield _counter("errors", "Errors answered.", recorder.errors, "code")
    about = "Parts of requests that this server can't do and left out: tools, items, parts."
    yield _counter("left_out", about, left_out.counts, "what", "kind")
    models = {(name,): figures for name, figures in recorder.models.items()}
    prompts = {key: one.prompt_tokens for key, one in models.items()}
    yield _counter("prompt_tokens", "Tokens of prompts.", prompts, "model")
    cached = {key: one.cached_tokens for key, one in models.items()}
    yield _counter("cached_tokens", "Those of them out of the prompt cache.", cached, "model")
    completions = {key: one.completion_tokens for key, one in models.items()}
    yield _counter("completion_tokens", "Tokens generated.", completions, "model")
    first = {key: one.first_token for key, one in models.items()}
    about = "Seconds from the request to its first token, loads included."
    yield _histogram("first_token_seconds", about, first, "model")
    pauses = {key: one.pause for key, one in models.items()}
    about = "Seconds from the loss of an answer's worker until the next one went on with it."
    yield _histogram("answer_pause_seconds", about, pauses, "model")
    gaps = {key: one.gap for key, one in models.items()}
    about = "Seconds between tokens, for those that came together the mean."
    yield _histogram("token_gap_seconds", about, gaps, "model")


def _of_events(counts: EventCounts) -> Iterator[Metric]:
    yield _counter("events", "What the journal recorded.", counts.events, "kind")
    yield _counter("loads", "Models loaded.", counts.loads, "model")
    yield _histogram("load_seconds", "What loads took.", counts.load_seconds, "model")
    yield _counter("load_failures", "Loads that failed.", counts.load_failures, "model")
    yield _counter("loads_refused", "Loads that memory had no room for.", counts.loads_refused, "model")
    yield _counter("unloads", "Models unloaded, evictions included.", counts.unloads, "model", "reason")
    expected = {(): 0.0} | dict(counts.reclaim_expected)
    yield _counter("reclaim_expected_bytes", "What unloads were to give back.", expected)
    yield _counter("reclaim_freed_bytes", "What the system showed to be back.", {(): 0.0} | dict(counts.reclaim_freed))
    yield _counter("worker_deaths", "Workers that died, or had to be killed.", counts.deaths, "model", "class")
    yield _counter("cleanups", "Clean-ups begun.", counts.cleanups, "kind")
    yield _counter("memory_level_changes", "Changes to each level.", counts.level_changes, "level")


def _gauge(name: str, about: str, values: Values, *labels: str) -> Metric:
    return _filled(GaugeMetricFamily(f"plimsoll_{name}", about, labels=labels), values.items())


def _counter(name: str, about: str, values: Values, *labels: str) -> Metric:
    return _filled(CounterMetricFamily(f"plimsoll_{name}", about, labels=labels), values.items())


def _filled(family: CounterMetricFamily | GaugeMetricFamily, values: Iterable[tuple[Labels, float]]) -> Metric:
    # Copied first: other threads count events meanwhile.
    for labels, value in tuple(values):
        family.add_metric(labels, value)
    return family


def _histogram(name: str, about: str, values: Mapping[Any, Distribution], *labels: str) -> Metric:
    family = HistogramMetricFamily(f"plimsoll_{name}", about, labels=labels)
    for key, distribution in tuple(values.items()):
        family.add_metric(key, distribution.buckets(), distribution.sum)
    return family
