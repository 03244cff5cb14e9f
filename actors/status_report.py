"""The whole server at one moment, out of what its parts know."""

from collections.abc import Callable
from typing import Literal

from plimsoll.actors.keeper import SILENT_S
from plimsoll.actors.messages import State, Status
from plimsoll.actors.outlook import Outlook
from plimsoll.actors.slots import Slots
from plimsoll.actors.stuck import StuckWorkers
from plimsoll.journal.journal import Journal


class StatusReport:
    """Owned by the Supervisor. ``sampler_lag_s`` is that of the latest sample."""

    def __init__(
        self, outlook: Outlook, slots: Slots, stuck: StuckWorkers, journal: Journal, clock: Callable[[], float]
    ) -> None:
        self._outlook = outlook
        self._slots = slots
        self._stuck = stuck
        self._journal = journal
        self._clock = clock
        self.sampler_lag_s = 0.0

    def status(self) -> Status:
        outlook, slots = self._outlook, self._slots
        admission: Literal["open", "closed"] = "open" if outlook.open and not slots.closed else "closed"
        rates = {slot.status.name: slot.throughput.per_second for slot in slots}
        return Status(
            level=outlook.level,
            sample=outlook.sample,
            models=[slot.status for slot in slots],
            admission=admission,
            stopping=slots.closed,
            problems=self._problems(),
            footprints={slot.status.name: slot.footprint_bytes for slot in slots},
            sampler_lag_s=self.sampler_lag_s,
            tokens_per_s={name: rate for name, rate in rates.items() if rate},
            pinned=frozenset(slots.pinned()),
            seconds_to_critical=outlook.seconds_to_critical,
            seats=tuple(slots.seats()),
        )

    def _problems(self) -> list[str]:
        problems = []
        age_s = self._clock() - self._outlook.sampled_at
        if self._outlook.blind or age_s > SILENT_S:
            problems.append(
                f"memory can't be read: the last reading is {age_s:.0f} s old, no model is loaded meanwhile"
            )
        if self._outlook.sample and self._outlook.sample.failed:
            problems.append(f"memory readers that fail: {', '.join(self._outlook.sample.failed)}")
        if self._journal.problem:
            problems.append(self._journal.problem)
        problems += self._stuck.problems()
        problems += [
            f"{slot.status.name}: {slot.status.error}"
            for slot in self._slots
            if slot.status.state in (State.FAILED, State.BACKOFF)
        ]
        return problems
