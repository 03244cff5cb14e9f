"""Whether an unload is complete: the memory has to be back by the source that the decision went by."""

import sys

import msgspec

from plimsoll.memory.ledger import Seat
from plimsoll.memory.sample import DEVICE_PREFIX, Sample

# At least this share of the expected bytes has to be back; other processes may have grown by the rest.
_ENOUGH = 0.5
# Metal frees memory late, and its figures follow later still.
TIMEOUT_S = 15.0 if sys.platform == "darwin" else 2.0
POLL_S = 0.5 if sys.platform == "darwin" else 0.05


class PendingUnload(msgspec.Struct, frozen=True):
    """One model that is being unloaded.

    ``expected_bytes`` is what the worker held in ``source``, ``used_bytes`` the use of that source when it was told to
    stop, and ``footprints`` what all our processes held in it at that time, by pid. Times on the monotonic clock;
    ``exited_at`` is when the process had ended.
    """

    name: str
    reason: str
    expected_bytes: int
    source: str
    used_bytes: int
    asked_at: float
    exited_at: float | None = None
    footprints: dict[int, int] = {}


class Reclaimed(msgspec.Struct, frozen=True):
    """How an unload ended. ``verified`` False: the process has ended, but the source did not show it in time."""

    name: str
    reason: str
    expected_bytes: int
    freed_bytes: int
    milliseconds: int
    verified: bool


def begin(seat: Seat, reason: str, sample: Sample, now: float) -> PendingUnload:
    """A pending unload that is measured by the sample's binding source.

    Of a model that lies in the memory of GPUs the host shows next to nothing, so all GPUs together are the source.
    """
    source, expected = sample.binding.source, seat.footprint_bytes
    if seat.device_bytes and source != "limit":
        source, expected = DEVICE_PREFIX, seat.device_bytes
    used, held = _used(source, sample), dict(_held(source, sample))
    return PendingUnload(seat.name, reason, expected, source, used or 0, now, footprints=held)


def judge(pending: PendingUnload, sample: Sample, now: float) -> Reclaimed | None:
    """The outcome, or None as long as the memory may still come back. Only a sample after the exit counts.

    What our other processes took meanwhile must have been freed before, so it counts as freed. What other programs took
    can't be told from memory that did not come back; the time limit covers that case.
    """
    exited_at = pending.exited_at
    if exited_at is None or sample.time_s < exited_at:
        return None
    used = _used(pending.source, sample)
    freed = (0 if used is None else pending.used_bytes - used) + _taken_since(pending, sample)
    verified = pending.expected_bytes == 0 or freed >= pending.expected_bytes * _ENOUGH
    if not verified and now - exited_at < TIMEOUT_S:
        return None
    milliseconds = round(1000 * (sample.time_s - pending.asked_at))
    return Reclaimed(pending.name, pending.reason, pending.expected_bytes, freed, milliseconds, verified)


def _taken_since(pending: PendingUnload, sample: Sample) -> int:
    """Bytes by which our other processes have grown since."""
    before = pending.footprints
    return sum(max(0, size - before.get(pid, 0)) for pid, size in _held(pending.source, sample).items())


def _used(source: str, sample: Sample) -> int | None:
    """The use of ``source``, which may be all GPUs together; None where the sample does not have it."""
    named = [one for one in sample.readings if one.source == source or (source == DEVICE_PREFIX and one.on_device)]
    return sum(one.used for one in named) if named else None


def _held(source: str, sample: Sample) -> dict[int, int]:
    """What our processes hold in ``source``, by pid."""
    return sample.device_bytes if source == DEVICE_PREFIX else sample.footprints
