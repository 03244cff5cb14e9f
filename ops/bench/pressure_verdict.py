"""What was seen of one run under pressure, and whether it is as it should be. Nothing here does anything.

All times are seconds on the monotonic clock, all sizes bytes.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

EMERGENCY = 98.0
STOPPED_WITHIN_S = 1.0
BACK_WITHIN_S = 5.0
ANSWERS_WITHIN_S = 5.0
# Errors that a client may get because memory is short, or because a worker died of it.
EXPECTED = frozenset({"insufficient_memory", "model_unloaded", "worker_died"})

Mode = Literal["ramp", "jump", "twice", "leave"]


@dataclass
class Stream:
    """One client's stream: ``outcome`` is open (it was still running at the end), ok, an error's code, or broken."""

    began: float
    ended: float = math.inf
    outcome: str = "open"


@dataclass
class WorkerSeen:
    """One worker process."""

    pid: int
    born: float
    ended: float = math.inf


@dataclass
class Probe:
    """One request for a short answer, asked again and again: ``outcome`` is ok, an error's code, or broken."""

    asked: float
    answered: float
    outcome: str
    model: str = ""


@dataclass
class Seen:
    """One run. ``samples`` are (time, percent of the limit), ``live`` (time, seconds that /health/live took)."""

    began: float = 0.0
    ended: float = 0.0
    samples: list[tuple[float, float]] = field(default_factory=list)
    workers: list[WorkerSeen] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    live: list[tuple[float, float]] = field(default_factory=list)
    filled: list[float] = field(default_factory=list)
    free: list[float] = field(default_factory=list)
    oom_kills: dict[str, int] = field(default_factory=dict)
    front_died: bool = False
    told: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Finding:
    """One figure against its target."""

    figure: str
    value: str
    ok: bool


def longest_after_emergency_s(seen: Seen) -> float:
    """How long a worker ran at most after a sample at emergency at which it was there; 0 if none did."""
    longest = 0.0
    for worker in seen.workers:
        first = next((at for at, percent in seen.samples if percent >= EMERGENCY and at >= worker.born), None)
        if first is not None and worker.ended > first:
            longest = max(longest, min(worker.ended, seen.ended) - first)
    return longest


def met_by_workers(seen: Seen) -> int:
    """How many of the hog's rounds reached emergency while a worker was there."""
    starts = [seen.began, *seen.free]
    return sum(
        any(
            percent >= EMERGENCY
            and start <= at <= end
            and any(worker.born <= at < worker.ended for worker in seen.workers)
            for at, percent in seen.samples
        )
        for start, end in zip(starts, [*seen.free, seen.ended], strict=True)
    )


def proves_something(mode: Mode, seen: Seen) -> bool:
    """Whether the run came to what its mode is about: by then, all workers may have been stopped or refused."""
    return mode != "twice" or met_by_workers(seen) >= 2


def back_after_s(seen: Seen) -> float:
    """From when memory was back for good to the end of the first whole answer after that; inf if there was none."""
    free = seen.free[-1] if seen.free else seen.began
    return min(
        (one.answered - free for one in seen.probes if one.outcome == "ok" and one.answered > free), default=math.inf
    )


def unanswered_s(seen: Seen) -> float:
    """The longest that /health/live took."""
    return max((seconds for _, seconds in seen.live), default=math.inf)


def judge(mode: Mode, seen: Seen) -> list[Finding]:
    """The figures of one run."""
    ours = seen.oom_kills.get("server", 0)
    ended = Counter(one.outcome for one in seen.streams)
    strange = [one for one in ended if one not in EXPECTED | {"ok", "open"}]
    findings = [Finding("the front lives", "died" if seen.front_died else "yes", not seen.front_died)]
    if mode in ("ramp", "leave"):
        # The others fill memory at once, which leaves no time to make room.
        findings.append(Finding("the kernel kills nothing of ours", str(ours), not ours))
    if mode == "leave":
        left = sum(count for outcome, count in ended.items() if outcome != "open")
        findings.append(Finding("streams that ended", str(left), not left))
    else:
        # An answer that is cut off with the kernel's kill of its worker counts as an error that says so.
        findings.append(Finding("streams with another end than an error that says why", str(len(strange)), not strange))
        back = back_after_s(seen)
        findings.append(Finding(f"an answer within {BACK_WITHIN_S:g} s", f"{back:.1f} s", back <= BACK_WITHIN_S))
    if mode in ("ramp", "twice"):
        longest = longest_after_emergency_s(seen)
        figure = f"no worker runs {STOPPED_WITHIN_S:g} s after a sample at {EMERGENCY:g} %"
        findings.append(Finding(figure, f"{longest:.2f} s", longest <= STOPPED_WITHIN_S))
    slow = unanswered_s(seen)
    findings.append(Finding(f"/health/live within {ANSWERS_WITHIN_S:g} s", f"{slow:.2f} s", slow <= ANSWERS_WITHIN_S))
    return findings


def summary(runs: Sequence[list[Finding]]) -> list[tuple[str, int, int]]:
    """Each figure, in how many runs it was as it should be, and of how many."""
    kept: Counter[str] = Counter()
    all_of: Counter[str] = Counter()
    for findings in runs:
        for one in findings:
            all_of[one.figure] += 1
            kept[one.figure] += one.ok
    return [(figure, kept[figure], count) for figure, count in all_of.items()]
