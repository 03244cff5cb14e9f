"""What the actors follow of the configuration while they run."""

import msgspec

from plimsoll.config import Config
from plimsoll.memory.levels import Thresholds


class Settings(msgspec.Struct, frozen=True):
    """Built once from the configuration, and replaced as a whole when the configuration is read again.

    ``limit_bytes`` is ``memory.limit``, ``queue`` is how many requests may wait for one model, ``critical_grace_s`` is
    how many seconds running answers get once memory is critically full, ``patience_s`` how long a request waits for
    memory, or for its next worker if it has lost one. ``preempt``: a load that has waited long pauses a busy model.
    """

    thresholds: Thresholds
    limit_bytes: int | None
    queue: int
    critical_grace_s: float
    patience_s: float = 0.0
    preempt: bool = False

    @classmethod
    def of(cls, config: Config) -> "Settings":
        """The settings that ``config`` holds."""
        memory = config.memory
        thresholds = Thresholds(
            memory.warning_percent,
            memory.critical_percent,
            memory.emergency_percent,
            memory.hysteresis_percent,
            memory.clear_after,
        )
        limit_bytes = None if memory.limit is None else int(memory.limit)
        return cls(
            thresholds, limit_bytes, config.models.queue, memory.critical_grace, memory.patience, config.engine.preempt
        )
