"""Errors about memory, with the figures in words and in the error body."""

from collections.abc import Sequence
from typing import Any

from plimsoll.errors import InsufficientMemory, NeverFits
from plimsoll.memory.death_evidence import fullest
from plimsoll.memory.ledger import Plan
from plimsoll.memory.sample import Reading, Sample

GIB = 1024**3
_RETRY_S = 10.0
# The memory of a dead worker is back sooner.
_AFTER_DEATH_S = 5.0


def out_of_memory(sample: Sample, what: str, retry_after_s: float = _RETRY_S) -> InsufficientMemory:
    """The error that says ``what`` happened and how full memory is."""
    binding = sample.binding
    figures = f"{sample.used_percent:.1f}% of {gib(binding.total)} used ({binding.source})"
    message = f"{what}: memory is too full ({figures}); try again once some is free"
    return InsufficientMemory(message, retry_after_s=retry_after_s, details=_details(binding))


def no_room(model: str, plan: Plan, sample: Sample) -> InsufficientMemory:
    """The error for a load that would fit if other models or programs were gone."""
    hint = ", or ".join(plan.remedies) or "other programs hold the memory: end some of them"
    message = (
        f"{model} is not loaded: it needs {gib(plan.required_bytes)} and {gib(plan.available_bytes)} are left "
        f"({'; '.join(plan.blockers) or 'other programs hold the rest'}); try again later"
    )
    details = _details(sample.binding_of_models, plan, hint)
    return InsufficientMemory(message, retry_after_s=_RETRY_S, details=details)


def never_fits(model: str, plan: Plan, sample: Sample) -> NeverFits:
    """The error for a load that can't fit even with nothing else loaded."""
    hint = "use a smaller or more strongly quantised model, or lower its context"
    # The smallest source decides; the fullest may be a large one.
    smallest = min(sample.of_models, key=lambda reading: reading.total)
    message = f"{model} can't be loaded here: it needs {gib(plan.required_bytes)} of {gib(smallest.total)}; {hint}"
    return NeverFits(message, details=_details(smallest, plan, hint))


def ran_out(message: str, samples: Sequence[Sample]) -> InsufficientMemory:
    """The error for requests of a worker that died for lack of memory, with the fullest of its last ``samples``."""
    details = _details(fullest(samples).binding) if samples else None
    return InsufficientMemory(message, retry_after_s=_AFTER_DEATH_S, details=details)


def gib(size: int) -> str:
    """Bytes in words."""
    return f"{size / GIB:.1f} GiB"


def _details(binding: Reading, plan: Plan | None = None, hint: str = "") -> dict[str, Any]:
    details: dict[str, Any] = {
        "required_gb": round(plan.required_bytes / GIB, 2) if plan else None,
        "available_gb": round((plan.available_bytes if plan else binding.available) / GIB, 2),
        "total_gb": round(binding.total / GIB, 2),
        "used_percent": round(binding.percent, 1),
        "binding_source": binding.source,
        "evictable_gb": round(plan.evictable_bytes / GIB, 2) if plan else None,
        "blockers": list(plan.blockers) if plan else [],
        "hint": hint or "try again once memory is free",
    }
    return details


def external(sample: Sample, level_percent: float) -> bool:
    """Whether use would stay at or above ``level_percent`` even if every process of ours were gone.

    False while use is below that level, whatever pressure the system reports. The sources ``limit`` and
    ``accelerator`` count nothing but our own processes, so they never show anyone else's use.
    """
    binding = sample.binding
    if binding.source in {"limit", "accelerator"}:
        return False
    on_devices = sum(sample.device_bytes.values())
    ours = on_devices if binding.on_device else sum(sample.footprints.values()) - on_devices
    others = binding.used - ours
    return 100.0 * others >= level_percent * binding.total
