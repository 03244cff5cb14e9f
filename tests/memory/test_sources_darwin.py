"""macOS: through a fake libSystem anywhere, and the real binding's failures on a machine without one."""

import ctypes
import errno
import os
import sys
from typing import Any

import pytest

from plimsoll.memory.sample import Level, Tracked
from plimsoll.memory.sources.darwin import LibSystem, RusageInfoV2

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


def test_a_missing_library_is_an_os_error() -> None:
    api = LibSystem("/nonexistent/libSystem.dylib")
    with pytest.raises(OSError, match="nonexistent"):
        api.pressure_level()
    with pytest.raises(OSError, match="nonexistent"):
        api.phys_footprint(os.getpid())


@pytest.mark.skipif(sys.platform != "linux", reason="needs a libc without these functions")
def test_a_missing_function_is_an_os_error() -> None:
    api = LibSystem("libc.so.6")
    with pytest.raises(OSError, match="has no sysctlbyname"):
        api.pressure_level()


class _Library:
    """Answers as the two functions do."""

    def __init__(self, code: int = 0) -> None:
        self.code = code

    def _end(self) -> int:
        ctypes.set_errno(self.code)
        return -1 if self.code else 0

    def sysctlbyname(self, name: bytes, level: Any, _size: Any, _new: None, _new_size: Any) -> int:
        assert name == b"kern.memorystatus_vm_pressure_level"
        level._obj.value = 2
        return self._end()

    def proc_pid_rusage(self, pid: Any, flavor: Any, info: Any) -> int:
        assert flavor.value == 2
        info._obj.ri_phys_footprint = pid.value * MIB
        return self._end()


def test_the_binding_returns_what_the_kernel_wrote() -> None:
    api = LibSystem()
    api.__dict__["_library"] = _Library()
    assert api.pressure_level() == 2
    assert api.phys_footprint(42) == 42 * MIB


@pytest.mark.parametrize(
    ("code", "error"), [(errno.ESRCH, ProcessLookupError), (errno.EPERM, PermissionError), (errno.EINVAL, OSError)]
)
def test_the_binding_raises_what_errno_says(code: int, error: type[OSError]) -> None:
    api = LibSystem()
    api.__dict__["_library"] = _Library(code)
    with pytest.raises(error):
        api.phys_footprint(42)


if sys.platform == "darwin":

    def test_a_real_mac_answers() -> None:
        api = LibSystem()
        assert api.pressure_level() in {1, 2, 4}
        assert api.phys_footprint(os.getpid()) > 5 * MIB
