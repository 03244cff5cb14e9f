"""macOS: through a fake libSystem anywhere, and the real binding's failures on a machine without one."""

import ctypes
import errno
import os
import sys
from typing import Any

import pytest

from plimsoll.memory.sample import Level, Tracked
from plimsoll.memory.sources import host
from plimsoll.memory.sources.darwin import LibSystem, RusageInfoV2, VmPages, VmStatistics64, XswUsage

GIB = 1024**3
MIB = 1024**2


@pytest.fixture
def mac(machine: Any, fake_darwin: Any) -> Any:
    machine.darwin = fake_darwin()
    machine.mac = machine.sampler(platform="darwin", darwin=machine.darwin, limit_bytes=4 * GIB)
    return machine


@pytest.mark.parametrize(("kernel", "level"), [(1, Level.NORMAL), (2, Level.WARNING), (4, Level.CRITICAL)])
def test_the_kernels_level_is_the_samples_pressure(mac: Any, kernel: int, level: Level) -> None:
    mac.darwin.level = kernel
    sample = mac.mac()
    assert (sample.pressure, sample.pressure_source) == (level, "vm_pressure" if level else "")


@pytest.mark.parametrize("level", [0, 3, 8, -1, PermissionError(), OSError(errno.ENOENT, "no such name")])
def test_a_level_that_is_unknown_or_unreadable_is_a_failure(mac: Any, level: Any) -> None:
    mac.darwin.level = level
    sample = mac.mac()
    assert (sample.failed, sample.pressure) == (("vm_pressure",), Level.NORMAL)


def test_neither_proc_nor_control_groups_are_read(mac: Any) -> None:
    mac.psi("99.00")
    mac.v2("", GIB, GIB)
    mac.belongs_to("0::/")
    sample = mac.mac()
    assert [reading.source for reading in sample.readings] == ["host", "limit"]
    assert sample.pressure == Level.NORMAL


def test_the_accelerator_counts_what_is_larger_of_footprint_and_report(mac: Any) -> None:
    mac.darwin.footprints |= {7: 30 * GIB, 8: 2 * GIB}
    tracked = [Tracked(7, 28 * GIB, 64 * GIB), Tracked(8, 3 * GIB, 60 * GIB), Tracked(9, 5 * GIB, 0)]
    sample = mac.mac(tracked)
    accelerator = next(reading for reading in sample.readings if reading.source == "accelerator")
    assert (accelerator.total, accelerator.used) == (64 * GIB, 33 * GIB)  # 9 has ended
    assert sample.footprints == {os.getpid(): 100 * MIB, 7: 30 * GIB, 8: 2 * GIB}


def test_without_a_working_set_there_is_no_accelerator(mac: Any) -> None:
    mac.darwin.footprints[7] = GIB
    assert [reading.source for reading in mac.mac([Tracked(7, GIB)]).readings] == ["host", "limit"]


def test_unreadable_footprints_leave_the_workers_own_reports(mac: Any) -> None:
    mac.darwin.footprints[7] = PermissionError(errno.EPERM, "not yours")
    sample = mac.mac([Tracked(7, GIB, 8 * GIB)])
    assert set(sample.failed) == {"footprint", "limit"}
    assert [(reading.source, reading.used) for reading in sample.readings[1:]] == [("accelerator", GIB)]


def test_the_struct_is_the_size_that_the_kernel_fills() -> None:
    assert ctypes.sizeof(RusageInfoV2) == 16 + 18 * 8
    assert RusageInfoV2.ri_phys_footprint.offset == 16 + 7 * 8
    assert ctypes.sizeof(VmStatistics64) == 38 * 4  # HOST_VM_INFO64_REV1_COUNT words
    assert VmStatistics64.compressor_page_count.offset == 32 * 4
    assert VmStatistics64.internal_page_count.offset == 35 * 4
    assert ctypes.sizeof(XswUsage) == 32


def test_a_missing_library_is_an_os_error() -> None:
    api = LibSystem("/nonexistent/libSystem.dylib")
    with pytest.raises(OSError, match="nonexistent"):
        api.pressure_level()
    with pytest.raises(OSError, match="nonexistent"):
        api.phys_footprint(os.getpid())
    with pytest.raises(OSError, match="nonexistent"):
        api.vm_pages()


@pytest.mark.skipif(sys.platform != "linux", reason="needs a libc without these functions")
def test_a_missing_function_is_an_os_error() -> None:
    api = LibSystem("libc.so.6")
    with pytest.raises(OSError, match="has no sysctlbyname"):
        api.pressure_level()
    with pytest.raises(OSError, match="has no mach_host_self"):
        api.vm_pages()


class _Library:
    """Answers as libSystem does: one code for the functions that set errno, one for those of Mach."""

    def __init__(self, code: int = 0, kern_return: int = 0, words: int = 38, short: int = 0) -> None:
        self.code, self.kern_return, self.words, self.short = code, kern_return, words, short
        self.port = -0x7FFF_FFFD  # 0x80000003, as ctypes shows a port with its highest bit set
        self.ports = 0

    def _end(self) -> int:
        ctypes.set_errno(self.code)
        return -1 if self.code else 0

    def sysctlbyname(self, name: bytes, value: Any, size: Any, _new: None, _new_size: Any) -> int:
        match name:
            case b"kern.memorystatus_vm_pressure_level":
                value._obj.value = 2
            case b"hw.memsize":
                value._obj.value = 48 * GIB
            case b"vm.swapusage":
                value._obj.xsu_total, value._obj.xsu_avail, value._obj.xsu_used = 3 * GIB, 2 * GIB, GIB
            case _:
                raise AssertionError(name)
        size._obj.value -= self.short
        return self._end()

    def proc_pid_rusage(self, pid: Any, flavor: Any, info: Any) -> int:
        assert flavor.value == 2
        info._obj.ri_phys_footprint = pid.value * MIB
        return self._end()

    def mach_host_self(self) -> int:
        self.ports += 1
        return self.port

    def host_page_size(self, host: Any, size: Any) -> int:
        assert host.value == 0x8000_0003
        size._obj.value = 16384
        return self.kern_return

    def host_statistics64(self, host: Any, flavor: Any, info: Any, count: Any) -> int:
        assert (host.value, flavor.value, count._obj.value) == (0x8000_0003, 4, 38)
        count._obj.value = self.words
        # By place, as the kernel writes; the names are for those who read.
        words = (ctypes.c_uint32 * 38).from_address(ctypes.addressof(info._obj))
        for place, value in {0: 11, 1: 12, 2: 13, 3: 14, 22: 15, 32: 16, 33: 17, 34: 18, 35: 19, 36: 20}.items():
            words[place] = value
        return self.kern_return


def bound(library: _Library) -> LibSystem:
    api = LibSystem()
    api.__dict__["_library"] = library
    return api


def test_the_binding_returns_what_the_kernel_wrote() -> None:
    api = bound(_Library())
    assert api.pressure_level() == 2
    assert api.phys_footprint(42) == 42 * MIB
    assert api.memory_bytes() == 48 * GIB
    assert api.swap_used_bytes() == GIB
    assert api.vm_pages() == VmPages(
        page_bytes=16384,
        free=11,
        active=12,
        inactive=13,
        wired=14,
        compressor=16,
        internal=19,
        external=18,
        purgeable=15,
    )


def test_the_machines_port_is_asked_for_once() -> None:
    library = _Library()
    api = bound(library)
    for _ in range(5):
        api.vm_pages()
    assert library.ports == 1


@pytest.mark.parametrize("port", [0, -1])
def test_no_port_is_an_os_error(port: int) -> None:
    library = _Library()
    library.port = port
    with pytest.raises(OSError, match="gives no port"):
        bound(library).vm_pages()


@pytest.mark.parametrize("library", [_Library(kern_return=5), _Library(words=24)], ids=["kern_return_t", "revision 0"])
def test_statistics_that_the_kernel_does_not_give_are_an_os_error(library: _Library) -> None:
    with pytest.raises(OSError, match=r"kern_return_t 5|24 of 38"):
        bound(library).vm_pages()


@pytest.mark.parametrize(
    ("code", "error"), [(errno.ESRCH, ProcessLookupError), (errno.EPERM, PermissionError), (errno.EINVAL, OSError)]
)
def test_the_binding_raises_what_errno_says(code: int, error: type[OSError]) -> None:
    api = bound(_Library(code))
    with pytest.raises(error):
        api.phys_footprint(42)
    with pytest.raises(error):
        api.memory_bytes()


def test_a_value_of_another_size_is_an_os_error() -> None:
    with pytest.raises(OSError, match=r"vm\.swapusage has 28 bytes, not 32"):
        bound(_Library(short=4)).swap_used_bytes()


if sys.platform == "darwin":

    def test_a_real_mac_answers() -> None:
        api = LibSystem()
        assert api.pressure_level() in {1, 2, 4}
        assert api.phys_footprint(os.getpid()) > 5 * MIB
        assert api.swap_used_bytes() >= 0
        assert 0 < host.in_use_bytes(api.vm_pages(), api.memory_bytes()) < api.memory_bytes()
