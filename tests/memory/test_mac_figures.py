"""What a Mac's figures lead to, from the kernel's page counts over the sample and the level to what may be loaded."""

import types
from typing import Any, NamedTuple

import pytest

from plimsoll.memory.ledger import plan
from plimsoll.memory.levels import LevelState, Thresholds, advance
from plimsoll.memory.sample import Level, Reading, Sample
from plimsoll.memory.sources import host
from plimsoll.memory.sources.darwin import VmPages

GIB = 1024**3
N, W, C, E = Level.NORMAL, Level.WARNING, Level.CRITICAL, Level.EMERGENCY
THRESHOLDS = Thresholds()


@pytest.fixture
def mac(machine: Any, fake_darwin: Any, pages_of: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Mac that psutil sees too, in its own way: what is free or inactive is available."""
    machine.darwin = fake_darwin()

    def by_psutil() -> Any:
        pages = machine.seen_pages
        return types.SimpleNamespace(total=machine.total, available=(pages.free + pages.inactive) * pages.page_bytes)

    def now(total: float, *, pages: VmPages | None = None, **kinds: Any) -> None:
        machine.darwin.memory = machine.total = int(total * GIB)
        machine.darwin.pages = machine.seen_pages = pages or pages_of(**kinds)

    monkeypatch.setattr(host.psutil, "virtual_memory", by_psutil)
    machine.now = now
    machine.mac = machine.sampler(platform="darwin", darwin=machine.darwin)
    return machine


def settled(mac: Any, swap_per_s: int = 0) -> tuple[Sample, Level]:
    """The last of three samples, a second apart, and the level that they lead to."""
    state = LevelState()
    for mac.time_s in (0.0, 1.0, 2.0):
        mac.darwin.swap = 10**10 + int(mac.time_s * swap_per_s)
        sample = mac.mac()
        state = advance(state, sample, THRESHOLDS)
    return sample, state.level


class State(NamedTuple):
    """A Mac of ``total`` GiB with ``kinds`` of pages in GiB and the kernel's own level; and what follows from it.

    ``loads`` says what becomes of a load of so many GiB.
    """

    total: int
    kinds: dict[str, float]
    kernel: int
    percent: float
    level: Level
    loads: dict[float, str]


STATES = {
    "idle": State(
        48, {"free": 34, "active": 6, "inactive": 4, "wired": 3, "internal": 6}, 1, 18.8, N, {36: "load", 37: "refuse"}
    ),
    "cache full after weights were read": State(
        48,
        {"free": 0.2, "active": 30, "inactive": 8, "wired": 4, "compressor": 3, "internal": 8},
        *(1, 31.2, N, {10: "load", 30: "load", 31: "refuse"}),
    ),
    "the same cache, read twice": State(
        48,
        {"free": 0.1, "active": 36, "inactive": 2, "wired": 4, "compressor": 3, "internal": 8},
        *(1, 31.2, N, {10: "load"}),
    ),
    "nothing inactive at all": State(
        48,
        {"free": 0.1, "active": 39, "inactive": 0.2, "wired": 4, "compressor": 3, "internal": 8},
        *(1, 31.2, N, {10: "load"}),
    ),
    "a model that Metal has wired": State(
        64,
        {"free": 2, "active": 12, "inactive": 8, "wired": 40, "internal": 8},
        *(1, 75.0, N, {12: "load", 13: "refuse"}),
    ),
    "Metal has wired almost all": State(
        64,
        {"free": 1, "active": 3, "inactive": 2, "wired": 56, "internal": 4},
        *(1, 93.8, W, {0.5: "load", 4: "refuse"}),
    ),
    "purgeable pages are no use": State(
        32,
        {"free": 0.5, "active": 12, "inactive": 11, "wired": 4, "compressor": 3, "internal": 20, "purgeable": 9},
        *(1, 56.2, N, {10: "load"}),
    ),
    "a squeeze that the compressor still carries": State(
        16,
        {"free": 0.3, "active": 4.2, "inactive": 4.0, "wired": 2.5, "compressor": 4.5, "internal": 7.6},
        *(2, 91.2, W, {0.5: "load", 1: "refuse"}),
    ),
    "a squeeze that the kernel calls critical": State(
        16,
        {"free": 0.1, "active": 2.2, "inactive": 2.0, "wired": 2.5, "compressor": 9, "internal": 4.0},
        *(4, 96.9, C, {0.5: "refuse"}),
    ),
    "the end": State(
        16,
        {"free": 0.05, "active": 1.2, "inactive": 1.0, "wired": 4.2, "compressor": 9.4, "internal": 2.15},
        *(4, 98.4, E, {0.5: "refuse"}),
    ),
}


@pytest.mark.parametrize("page_bytes", [4096, 16384])
@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_a_mac_in_this_state(mac: Any, state: State, page_bytes: int) -> None:
    mac.darwin.level = state.kernel
    mac.now(state.total, page_bytes=page_bytes, **state.kinds)
    sample, level = settled(mac)
    assert sample.failed == ()
    assert sample.binding.total == state.total * GIB
    assert sample.used_percent == pytest.approx(state.percent, abs=0.1)
    assert level == state.level
    verdicts = {need: plan(int(need * GIB), (), sample, THRESHOLDS.critical).verdict for need in state.loads}
    assert verdicts == state.loads


def test_more_file_cache_changes_nothing(mac: Any) -> None:
    seen = set()
    for cached in range(0, 33, 4):
        mac.now(48, free=33 - cached, active=7 + cached, inactive=1, wired=4, compressor=3, internal=8)
        sample, level = settled(mac)
        seen.add((sample.binding.used // 2**20, level))
    assert seen == {(15 * 1024, N)}


def test_weights_that_become_wired_are_used_and_come_back(mac: Any) -> None:
    mac.now(64, free=4, active=48, inactive=2, wired=4, internal=8)  # their file is in the cache
    before = mac.mac().binding.used
    mac.now(64, free=4, active=8, inactive=2, wired=44, internal=8)
    assert mac.mac().binding.used == before + 40 * GIB
    mac.now(64, free=44, active=8, inactive=2, wired=4, internal=8)
    assert mac.mac().binding.used == before


# At 81% use: the kernel's level and swap only ever raise the level, swap no further than to warning.
@pytest.mark.parametrize(
    ("kernel", "swap_per_s", "level", "source"),
    [
        (1, 0, N, ""),
        (1, 4_000_000, N, ""),
        (1, 5_000_000, W, "swap"),
        (1, 10**9, W, "swap"),
        (1, -(10**9), N, ""),
        (2, 0, W, "vm_pressure"),
        (2, 10**9, W, "vm_pressure"),
        (4, 10**9, C, "vm_pressure"),
    ],
)
def test_swap_and_the_kernels_level_raise_it(mac: Any, kernel: int, swap_per_s: int, level: Level, source: str) -> None:
    mac.darwin.level = kernel
    mac.now(16, free=0.5, active=5, inactive=4, wired=2, compressor=4, internal=7)
    sample, reached = settled(mac, swap_per_s)
    assert (reached, sample.pressure_source) == (level, source)


@pytest.mark.parametrize(("kernel", "level"), [(1, N), (2, W), (4, C)])
def test_in_a_mac_full_of_file_cache_swap_says_nothing_and_the_kernel_does(mac: Any, kernel: int, level: Level) -> None:
    """Programs that nobody uses go to swap as files are read; the kernel's own level leaves file cache out."""
    mac.darwin.level = kernel
    mac.now(48, free=0.2, active=30, inactive=8, wired=4, compressor=3, internal=8)
    sample, reached = settled(mac, 10**9)
    assert (reached, sample.pressure_source) == (level, "vm_pressure" if level else "")


def test_swap_that_cannot_be_read_is_a_failure(mac: Any) -> None:
    mac.now(16, free=8, active=3, inactive=2, wired=2, internal=3)
    mac.darwin.swap = OSError("no such name")
    sample = mac.mac()
    assert (sample.failed, sample.pressure) == (("swap",), N)


@pytest.mark.parametrize("broken", ["memory", "pages"])
def test_without_the_kernels_pages_psutil_stands_in_and_health_names_them(mac: Any, broken: str) -> None:
    mac.now(48, free=1, active=30, inactive=9, wired=4, compressor=3, internal=8)
    setattr(mac.darwin, broken, OSError(5, "host_statistics64: kern_return_t 5"))
    sample = mac.mac()
    assert sample.failed == ("host_statistics",)
    assert sample.readings == (Reading("host", 48 * GIB, 38 * GIB),)
    assert "psutil" in mac.mac.errors["host_statistics"]


@pytest.mark.parametrize("page_bytes", [4096, 65536])
def test_pages_of_another_size_than_the_kernel_counts_by_do_not_add_up(mac: Any, page_bytes: int) -> None:
    """A machine a quarter as large, or four times: such figures would be worse than psutil's."""
    mac.now(48, free=1, active=30, inactive=9, wired=4, compressor=3, internal=8)
    kinds = {name: getattr(mac.darwin.pages, name) for name in VmPages.__struct_fields__}
    mac.darwin.pages = VmPages(**{**kinds, "page_bytes": page_bytes})
    sample = mac.mac()
    assert sample.failed == ("host_statistics",)
    assert sample.binding.used == 38 * GIB


def test_no_pages_at_all_do_not_read_as_an_empty_machine(mac: Any) -> None:
    mac.now(48, free=1, active=30, inactive=9, wired=4, compressor=3, internal=8)
    mac.darwin.pages = VmPages(16384, *[0] * 8)
    assert (mac.mac().failed, mac.mac().binding.used) == (("host_statistics",), 38 * GIB)
