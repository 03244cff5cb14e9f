"""Counters out of the journal: loads, unloads by reason, deaths by class, what came back."""

import re
from collections import Counter, defaultdict

from plimsoll.http.operations.recorder import Distribution, Labels
from plimsoll.journal import events as e

LOAD_S = (0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
# Reasons are sentences for people; as a label each becomes one of few words, by how it begins.
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
    """A subscriber of the journal, which calls it with one event at a time."""

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
    """A reason as one of few words."""
    return next((label for begin, label in _REASONS.items() if text.startswith(begin)), "other")


def death_class(how: str) -> str:
    """``signal 11 (SIGSEGV)`` as ``sigsegv``, an exit code as ``exit``."""
    signal = re.search(r"\((SIG\w+)\)", how)
    return signal[1].lower() if signal else "exit"
