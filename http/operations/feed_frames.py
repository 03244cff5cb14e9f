"""The events of the live feed as their bytes on the wire."""

import os
import time
from typing import Any

import msgspec

from plimsoll import __version__
from plimsoll.http.front import Front
from plimsoll.http.operations.health import Condition
from plimsoll.http.operations.history import entry_body
from plimsoll.journal.events import Entry
from plimsoll.journal.lines import Language
from plimsoll.memory.report import GIB
from plimsoll.memory.sample import Level


def frame(name: str, body: dict[str, Any], number: int = 0) -> bytes:
    """One server-sent event; ``number`` is what a client names in ``Last-Event-ID``."""
    head = f"id: {number}\nevent: {name}" if number else f"event: {name}"
    return head.encode() + b"\ndata: " + msgspec.json.encode(body) + b"\n\n"


def entry_frame(entry: Entry, language: Language) -> bytes:
    return frame("journal", entry_body(entry, language), entry.id)


def hello_frame(front: Front) -> bytes:
    memory = front.config.memory
    thresholds = {
        "warning": memory.warning_percent,
        "critical": memory.critical_percent,
        "emergency": memory.emergency_percent,
    }
    body = {
        "version": __version__,
        "started_at": front.created,
        "now": round(time.time(), 3),
        "pid": os.getpid(),
        "thresholds": thresholds,
        "limit_gb": None if memory.limit is None else round(memory.limit / GIB, 2),
        "last_event": front.system.journal.last_id,
    }
    return frame("hello", body)


def sample_body(now: Condition, level: Level) -> dict[str, Any]:
    """What is new in a sample; ``level`` is the last one known. Figures that can't be read are null."""
    known, sample = now.known, now.sample
    binding = sample.binding if sample else None
    seconds = known.seconds_to_critical if known else None
    return {
        "level": level.name.lower(),
        "percent": round(binding.percent, 2) if binding else None,
        "source": binding.source if binding else None,
        "sources": {
            one.source: {"percent": round(one.percent, 2), "used": one.used, "total": one.total}
            for one in (sample.readings if sample else ())
        },
        "used": binding.used if binding else None,
        "total": binding.total if binding else None,
        "front": sample.footprints.get(os.getpid(), 0) if sample else 0,
        "models": {name: held for name, held in known.footprints.items() if held} if known else {},
        "lag_ms": round(1000 * known.sampler_lag_s, 1) if known else None,
        "admission": known.admission if known else "closed",
        "status": now.word,
        "problems": now.problems,
        "seconds_to_critical": None if seconds is None else round(seconds, 1),
    }


def epoch(time_s: float) -> float:
    """Seconds since the epoch of a moment on the monotonic clock."""
    return round(time.time() - time.monotonic() + time_s, 3)
