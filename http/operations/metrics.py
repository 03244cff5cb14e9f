"""``GET /metrics``: Prometheus' text, made at each scrape out of counters that belong to this server alone."""

import os
import platform
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
from plimsoll.http.front import AnyRequest, App, Front
from plimsoll.http.operations.event_counts import EventCounts
from plimsoll.http.operations.health import Condition, condition, read_status
from plimsoll.http.operations.recorder import Distribution, Labels, Recorder

Values = Mapping[Any, float]
"""Figures by the values of their labels, a tuple of text."""


def add_routes(app: App, front: Front) -> None:
    """Register this module's endpoint; events are counted from now on."""
    counts = EventCounts()
    front.system.journal.subscribe(counts.note)

    async def metrics(request: AnyRequest) -> HTTPResponse:
        now = condition(await read_status(front))
        registry = CollectorRegistry()
        registry.register(Scrape(front, counts, now))
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return raw(encode(registry), content_type=content_type)

    app.add_route(metrics, "/metrics", methods=["GET"], name="metrics")


class Scrape(Collector):
    """Every metric at one moment; one that has no value yet still says its name and what it is."""

    def __init__(self, front: Front, counts: EventCounts, now: Condition) -> None:
        self._front = front
        self._counts = counts
        self._now = now

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily(
            "plimsoll_build", "Which version runs.", {"version": __version__, "python": platform.python_version()}
        )
        yield _gauge("start_time_seconds", "When the server began, since the epoch.", {(): self._front.created})
        yield from _of_requests(self._front.recorder)
        yield from _of_events(self._counts)
        yield from self._of_memory()
        yield from self._of_models()

    def _of_memory(self) -> Iterator[Metric]:
        sample, known = self._now.sample, self._now.known
        readings = sample.readings if sample else ()
        memory = self._front.config.memory
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
        front = {(): float(sample.footprints[os.getpid()])} if sample and os.getpid() in sample.footprints else {}
        yield _gauge("front_footprint_bytes", "Memory of the front process.", front)

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
        states = {(one.name, str(one.state)): 1.0 for one in models}
        yield _gauge("model_state", "1 for the state that the model is in.", states, "model", "state")


def _of_requests(recorder: Recorder) -> Iterator[Metric]:
    yield _counter("requests", "Requests that ended.", recorder.requests, "api", "model", "outcome")
    yield _counter("errors", "Errors answered.", recorder.errors, "code")
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
    # Counters of events grow in other threads meanwhile.
    for labels, value in tuple(values):
        family.add_metric(labels, value)
    return family


def _histogram(name: str, about: str, values: Mapping[Any, Distribution], *labels: str) -> Metric:
    family = HistogramMetricFamily(f"plimsoll_{name}", about, labels=labels)
    for key, distribution in tuple(values.items()):
        family.add_metric(key, distribution.buckets(), distribution.sum)
    return family
