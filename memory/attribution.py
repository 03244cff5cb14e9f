"""Whose memory it is that is used."""

from plimsoll.memory.sample import Sample


def external(sample: Sample, level_percent: float) -> bool:
    """Whether use would stay at or above ``level_percent`` even if every process of ours were gone.

    False while use is below that level, whatever pressure the system reports. The sources ``limit`` and
    ``accelerator`` count nothing but our own processes, so they never show anyone else's use.
    """
    binding = sample.binding
    if binding.source in {"limit", "accelerator"}:
        return False
    others = binding.used - sum(sample.footprints.values())
    return 100.0 * others >= level_percent * binding.total
