"""Whether an unload is done: the memory has to be back by the same signal that asked for it."""

import sys

import msgspec

from plimsoll.memory.sample import Sample

# At least this share of what was expected has to be seen again; the rest may be another's growth.
_ENOUGH = 0.5
# Metal gives memory back late, and its figures follow later still.
TIMEOUT_S = 15.0 if sys.platform == "darwin" else 2.0
POLL_S = 0.5 if sys.platform == "darwin" else 0.05


class Departure(msgspec.Struct, frozen=True):
    """One model on its way out.

    ``expected_bytes`` is its worker's last footprint, ``used_bytes`` what ``source`` said when it was told to stop.
    Times on the monotonic clock; ``exited_at`` is when its process was reaped.
    """

    name: str
    reason: str
    expected_bytes: int
    source: str
    used_bytes: int
    asked_at: float
    exited_at: float | None = None


class Reclaimed(msgspec.Struct, frozen=True):
    """How a departure ended. ``verified`` False: the process is gone but the signal did not follow in time."""

    name: str
    reason: str
    expected_bytes: int
    freed_bytes: int
    milliseconds: int
    verified: bool


def begin(name: str, reason: str, expected_bytes: int, sample: Sample, now: float) -> Departure:
    """A departure that is measured by the sample's binding source."""
    binding = sample.binding
    return Departure(name, reason, expected_bytes, binding.source, binding.used, now)


def judge(departure: Departure, sample: Sample, now: float) -> Reclaimed | None:
    """The outcome, or None while it is still to be waited for. Only a sample taken after the exit counts."""
    exited_at = departure.exited_at
    if exited_at is None or sample.time_s < exited_at:
        return None
    used = next((one.used for one in sample.readings if one.source == departure.source), departure.used_bytes)
    freed = departure.used_bytes - used
    verified = departure.expected_bytes == 0 or freed >= departure.expected_bytes * _ENOUGH
    if not verified and now - exited_at < TIMEOUT_S:
        return None
    milliseconds = round(1000 * (sample.time_s - departure.asked_at))
    return Reclaimed(departure.name, departure.reason, departure.expected_bytes, freed, milliseconds, verified)
