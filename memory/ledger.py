"""Whom to unload, and in which order: pure decisions over what is known of the models."""

from collections.abc import Iterable

import msgspec


class Candidate(msgspec.Struct, frozen=True):
    """One living model as far as eviction is concerned; ``last_used`` on the monotonic clock."""

    name: str
    last_used: float
    idle: bool
    pinned: bool


def victims(alive: Iterable[Candidate], *, aggressive: bool) -> list[str]:
    """Names to unload, least recently used first.

    Normal: every idle, unpinned model, but the most recently used one stays. Aggressive: all of them.
    """
    by_age = sorted(alive, key=lambda model: model.last_used)
    if aggressive:
        return [model.name for model in by_age]
    return [model.name for model in by_age[:-1] if model.idle and not model.pinned]
