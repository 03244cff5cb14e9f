"""Whether every host of a worker group has room for its share: a pure decision over the hosts' figures."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from plimsoll.memory.memory_errors import gib
from plimsoll.memory.sample import Reading


class HostShare(msgspec.Struct, frozen=True):
    """The bytes that all ranks on ``host`` need together, and the host's memory readings."""

    host: str
    share_bytes: int
    readings: tuple[Reading, ...]


class HostRefusal(msgspec.Struct, frozen=True):
    """``full``: the host has no room now. ``never``: it has no room even with everything else unloaded."""

    kind: Literal["full", "never"]
    sentence: str


def refuse(shares: Sequence[HostShare], critical_percent: float) -> HostRefusal | None:
    """Why the group can't be loaded; None if each host stays below critical in all its sources."""
    refusals = [found for share in shares if (found := _refuse(share, critical_percent))]
    return min(refusals, key=lambda one: one.kind == "full", default=None)


def emergency(host: str, readings: Sequence[Reading], emergency_percent: float) -> str:
    """The sentence that ends the group because ``host`` is almost out of memory; empty where it is not."""
    binding = max(readings, key=lambda one: one.percent)
    if binding.percent < emergency_percent:
        return ""
    return (
        f"memory of host {host} is almost exhausted ({binding.percent:.1f}% of {gib(binding.total)} used, "
        f"{binding.source}), so the group was ended on all its hosts; it loads again once all of them have room"
    )


def _refuse(share: HostShare, critical_percent: float) -> HostRefusal | None:
    smallest = min(share.readings, key=lambda one: one.total)
    needs = f"its share on host {share.host} needs {gib(share.share_bytes)}"
    if share.share_bytes > smallest.total * critical_percent / 100:
        return HostRefusal("never", f"{needs} of {gib(smallest.total)} there; spread it over more hosts")
    room, tightest = min(
        ((int(one.total * critical_percent / 100) - one.used, one) for one in share.readings), key=lambda pair: pair[0]
    )
    if share.share_bytes <= room:
        return None
    return HostRefusal(
        "full",
        f"{needs} and {gib(max(0, room))} are left there ({tightest.percent:.1f}% of {gib(tightest.total)} used, "
        f"{tightest.source}); try again once other programs have left it",
    )
