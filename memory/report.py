"""Memory figures in words and in error bodies."""

from typing import Any

from plimsoll.errors import InsufficientMemory, NeverFits
from plimsoll.memory.plan import Plan
from plimsoll.memory.sample import Reading, Sample

GIB = 1024**3
_RETRY_S = 10.0


def out_of_memory(sample: Sample, what: str, retry_after_s: float = _RETRY_S) -> InsufficientMemory:
    """The error that says ``what`` happened and how full memory is."""
    binding = sample.binding
    figures = f"{sample.used_percent:.1f}% of {gib(binding.total)} used ({binding.source})"
    message = f"{what}: memory is too full ({figures}); try again once some is free"
    return InsufficientMemory(message, retry_after_s=retry_after_s, details=_details(binding))


def no_room(model: str, plan: Plan, sample: Sample) -> InsufficientMemory:
    """The error for a load that would fit if others were gone."""
    hint = "wait until " + "; ".join(plan.blockers) if plan.blockers else "other programs hold the memory"
    message = (
        f"{model} is not loaded: it needs {gib(plan.required_bytes)} and {gib(plan.available_bytes)} are left "
        f"({'; '.join(plan.blockers) or 'other programs hold the rest'}); try again later"
    )
    details = _details(sample.binding, plan, hint)
    return InsufficientMemory(message, retry_after_s=_RETRY_S, details=details)


def never_fits(model: str, plan: Plan, sample: Sample) -> NeverFits:
    """The error for a load that can't fit even with nothing else loaded."""
    hint = "use a smaller or more strongly quantised model, or lower its context"
    # The fullest source may be a large one that has nothing to do with it.
    smallest = min(sample.readings, key=lambda reading: reading.total)
    message = f"{model} can't be loaded here: it needs {gib(plan.required_bytes)} of {gib(smallest.total)}; {hint}"
    return NeverFits(message, details=_details(smallest, plan, hint))


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
