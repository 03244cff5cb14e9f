"""Memory figures in words and in error bodies."""

from plimsoll.errors import InsufficientMemory
from plimsoll.memory.sample import Sample

GIB = 1024**3


def out_of_memory(sample: Sample, what: str, retry_after_s: float = 10.0) -> InsufficientMemory:
    """The error that says ``what`` happened and how full memory is."""
    binding = sample.binding
    figures = f"{sample.used_percent:.1f}% of {binding.total / GIB:.1f} GiB used ({binding.source})"
    return InsufficientMemory(
        f"{what} ({figures}); try again once memory is free",
        retry_after_s=retry_after_s,
        details={
            "used_percent": round(sample.used_percent, 1),
            "available_gb": round(binding.available / GIB, 2),
            "total_gb": round(binding.total / GIB, 2),
            "binding_source": binding.source,
        },
    )
