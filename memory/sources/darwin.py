"""What macOS alone can tell, through ctypes: its pages by kind, its swap, its pressure level, its footprints."""

import ctypes
import errno
import functools
import os
from typing import Any, Protocol, TypeVar

import msgspec

_LIBRARY = "/usr/lib/libSystem.B.dylib"
_RUSAGE_INFO_V2 = 2
_HOST_VM_INFO64 = 4  # <mach/host_info.h>
_KERN_SUCCESS = 0
_UINT32_MAX = 0xFFFF_FFFF

_Data = TypeVar("_Data", bound=Any)


class VmPages(msgspec.Struct, frozen=True):
    """How many pages of ``page_bytes`` bytes are of which kind.

    Each page is ``free``, ``active``, ``inactive``, ``wired`` or one that ``compressor`` keeps compressed pages in.
    The active and inactive ones are also either ``external``, which means file cache, or ``internal``, which means
    a process's own; ``purgeable`` counts those internal ones that their owner lets the kernel discard.
    """

    page_bytes: int
    free: int
    active: int
    inactive: int
    wired: int
    compressor: int
    internal: int
    external: int
    purgeable: int


class DarwinApi(Protocol):
    """All raise ``OSError``; for a process that has ended, ``ProcessLookupError``."""

    def memory_bytes(self) -> int:
        """``hw.memsize``: the machine's memory."""

    def vm_pages(self) -> VmPages:
        """``host_statistics64`` with ``HOST_VM_INFO64``.

        The kernel answers all programs together 2 to 10 times a second with fresh figures, then with the last ones.
        """

    def swap_used_bytes(self) -> int:
        """``vm.swapusage``: what lies in swap."""

    def pressure_level(self) -> int:
        """``kern.memorystatus_vm_pressure_level``: 1 normal, 2 warning, 4 critical."""

    def phys_footprint(self, pid: int) -> int:
        """Bytes as Activity Monitor counts them, Metal's included; needs no root for processes of the same user."""


class VmStatistics64(ctypes.Structure):
    """``struct vm_statistics64`` up to revision 1 (xnu, osfmk/mach/vm_statistics.h; since OS X 10.9).

    A newer kernel has more fields at its end and fills in as many as the caller's count asks for.
    """

    _fields_ = [
        ("free_count", ctypes.c_uint32),  # with the speculative ones
        ("active_count", ctypes.c_uint32),
        ("inactive_count", ctypes.c_uint32),
        ("wire_count", ctypes.c_uint32),
        ("zero_fill_count", ctypes.c_uint64),
        ("reactivations", ctypes.c_uint64),
        ("pageins", ctypes.c_uint64),
        ("pageouts", ctypes.c_uint64),
        ("faults", ctypes.c_uint64),
        ("cow_faults", ctypes.c_uint64),
        ("lookups", ctypes.c_uint64),
        ("hits", ctypes.c_uint64),
        ("purges", ctypes.c_uint64),
        ("purgeable_count", ctypes.c_uint32),
        ("speculative_count", ctypes.c_uint32),
        ("decompressions", ctypes.c_uint64),
        ("compressions", ctypes.c_uint64),
        ("swapins", ctypes.c_uint64),
        ("swapouts", ctypes.c_uint64),
        ("compressor_page_count", ctypes.c_uint32),
        ("throttled_count", ctypes.c_uint32),
        ("external_page_count", ctypes.c_uint32),
        ("internal_page_count", ctypes.c_uint32),
        ("total_uncompressed_pages_in_compressor", ctypes.c_uint64),
    ]


# HOST_VM_INFO64_REV1_COUNT of <mach/host_info.h>: the length in units of 4 bytes.
_VM_INFO64_COUNT = ctypes.sizeof(VmStatistics64) // 4


class XswUsage(ctypes.Structure):
    """``struct xsw_usage`` of <sys/sysctl.h> (xnu, bsd/sys/sysctl.h); sizes in bytes."""

    _fields_ = [
        ("xsu_total", ctypes.c_uint64),
        ("xsu_avail", ctypes.c_uint64),
        ("xsu_used", ctypes.c_uint64),
        ("xsu_pagesize", ctypes.c_uint32),
        ("xsu_encrypted", ctypes.c_int32),
    ]


class RusageInfoV2(ctypes.Structure):
    """``struct rusage_info_v2`` of <sys/resource.h> (xnu, bsd/sys/resource.h; since OS X 10.9)."""

    _fields_ = [
        ("ri_uuid", ctypes.c_uint8 * 16),
        ("ri_user_time", ctypes.c_uint64),
        ("ri_system_time", ctypes.c_uint64),
        ("ri_pkg_idle_wkups", ctypes.c_uint64),
        ("ri_interrupt_wkups", ctypes.c_uint64),
        ("ri_pageins", ctypes.c_uint64),
        ("ri_wired_size", ctypes.c_uint64),
        ("ri_resident_size", ctypes.c_uint64),
        ("ri_phys_footprint", ctypes.c_uint64),
        ("ri_proc_start_abstime", ctypes.c_uint64),
        ("ri_proc_exit_abstime", ctypes.c_uint64),
        ("ri_child_user_time", ctypes.c_uint64),
        ("ri_child_system_time", ctypes.c_uint64),
        ("ri_child_pkg_idle_wkups", ctypes.c_uint64),
        ("ri_child_interrupt_wkups", ctypes.c_uint64),
        ("ri_child_pageins", ctypes.c_uint64),
        ("ri_child_elapsed_abstime", ctypes.c_uint64),
        ("ri_diskio_bytesread", ctypes.c_uint64),
        ("ri_diskio_byteswritten", ctypes.c_uint64),
    ]


class LibSystem:
    """``DarwinApi`` over libSystem, which is loaded at the first call: importing this is fine on any system."""

    def __init__(self, path: str = _LIBRARY) -> None:
        self._path = path

    def memory_bytes(self) -> int:
        return int(self._sysctl("hw.memsize", ctypes.c_uint64()).value)

    def vm_pages(self) -> VmPages:
        info, count = VmStatistics64(), ctypes.c_uint32(_VM_INFO64_COUNT)
        host, flavor = ctypes.c_uint32(self._host), ctypes.c_int(_HOST_VM_INFO64)
        self._mach("host_statistics64", host, flavor, ctypes.byref(info), ctypes.byref(count))
        if count.value < _VM_INFO64_COUNT:
            raise OSError(errno.ENOSYS, f"host_statistics64 fills in {count.value} of {_VM_INFO64_COUNT} words")
        return VmPages(
            page_bytes=self._page_bytes,
            free=info.free_count,
            active=info.active_count,
            inactive=info.inactive_count,
            wired=info.wire_count,
            compressor=info.compressor_page_count,
            internal=info.internal_page_count,
            external=info.external_page_count,
            purgeable=info.purgeable_count,
        )

    def swap_used_bytes(self) -> int:
        return int(self._sysctl("vm.swapusage", XswUsage()).xsu_used)

    def pressure_level(self) -> int:
        return int(self._sysctl("kern.memorystatus_vm_pressure_level", ctypes.c_int()).value)

    def phys_footprint(self, pid: int) -> int:
        info = RusageInfoV2()
        self._call("proc_pid_rusage", ctypes.c_int(pid), ctypes.c_int(_RUSAGE_INFO_V2), ctypes.byref(info))
        return int(info.ri_phys_footprint)

    @functools.cached_property
    def _library(self) -> ctypes.CDLL:
        return ctypes.CDLL(self._path, use_errno=True)

    @functools.cached_property
    def _host(self) -> int:
        """The port of this machine. Asked for once: each call adds a right that somebody would have to give back."""
        # ctypes takes every result for a signed int.
        port = int(self._function("mach_host_self")()) & _UINT32_MAX
        if port in {0, _UINT32_MAX}:  # MACH_PORT_NULL, MACH_PORT_DEAD
            raise OSError(errno.EIO, "mach_host_self gives no port")
        return port

    @functools.cached_property
    def _page_bytes(self) -> int:
        """The kernel's page, by which it counts; under Rosetta a process's own is smaller."""
        size = ctypes.c_size_t()
        self._mach("host_page_size", ctypes.c_uint32(self._host), ctypes.byref(size))
        return size.value

    def _sysctl(self, name: str, value: _Data) -> _Data:
        """``value``, filled in by the kernel."""
        size = ctypes.c_size_t(ctypes.sizeof(value))
        self._call("sysctlbyname", name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
        if size.value != ctypes.sizeof(value):
            raise OSError(errno.EINVAL, f"{name} has {size.value} bytes, not {ctypes.sizeof(value)}")
        return value

    def _call(self, name: str, *arguments: Any) -> None:
        """For functions that return 0 on success and set errno otherwise."""
        function = self._function(name)
        ctypes.set_errno(0)
        if function(*arguments) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"{name}: {os.strerror(code)}")

    def _mach(self, name: str, *arguments: Any) -> None:
        """For functions that return a ``kern_return_t`` of <mach/kern_return.h>."""
        code = self._function(name)(*arguments)
        if code != _KERN_SUCCESS:
            raise OSError(errno.EIO, f"{name}: kern_return_t {code}")

    def _function(self, name: str) -> Any:
        try:
            return getattr(self._library, name)
        except AttributeError as error:
            raise OSError(errno.ENOSYS, f"{self._path} has no {name}") from error
