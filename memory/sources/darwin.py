"""What macOS alone can tell, through ctypes: the kernel's pressure level and the footprints it goes by."""

import ctypes
import errno
import functools
import os
from typing import Any, Protocol

_LIBRARY = "/usr/lib/libSystem.B.dylib"
_RUSAGE_INFO_V2 = 2


class DarwinApi(Protocol):
    """Both raise ``OSError``; for a process that has ended, ``ProcessLookupError``."""

    def pressure_level(self) -> int:
        """``kern.memorystatus_vm_pressure_level``: 1 normal, 2 warning, 4 critical."""

    def phys_footprint(self, pid: int) -> int:
        """Bytes as Activity Monitor counts them, Metal's included; needs no root for processes of the same user."""


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

    def pressure_level(self) -> int:
        level = ctypes.c_int(0)
        size = ctypes.c_size_t(ctypes.sizeof(level))
        name = b"kern.memorystatus_vm_pressure_level"
        self._call("sysctlbyname", name, ctypes.byref(level), ctypes.byref(size), None, ctypes.c_size_t(0))
        return level.value

    def phys_footprint(self, pid: int) -> int:
        info = RusageInfoV2()
        self._call("proc_pid_rusage", ctypes.c_int(pid), ctypes.c_int(_RUSAGE_INFO_V2), ctypes.byref(info))
        return int(info.ri_phys_footprint)

    @functools.cached_property
    def _library(self) -> ctypes.CDLL:
        return ctypes.CDLL(self._path, use_errno=True)

    def _call(self, name: str, *arguments: Any) -> None:
        """Both functions return 0 on success and set errno otherwise."""
        try:
            function = getattr(self._library, name)
        except AttributeError as error:
            raise OSError(errno.ENOSYS, f"{self._path} has no {name}") from error
        ctypes.set_errno(0)
        if function(*arguments) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"{name}: {os.strerror(code)}")
