"""Which library multiplies matrices on this CPU, for this process."""

import ctypes
import os
import sys
from pathlib import Path

_KNOWN = ("openblas", "mkl", "blis", "atlas")


class _DlInfo(ctypes.Structure):
    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def blas_in_use() -> str:
    """``openblas``, ``mkl``, the preloaded library's file name, ``accelerate`` on macOS, else ``reference``.

    MLX's Linux wheel brings the reference BLAS and takes another one only where it was preloaded. A look at the mapped
    files would be wrong: numpy maps an OpenBLAS of its own.
    """
    if sys.platform == "darwin":
        return "accelerate"
    process = ctypes.CDLL(None)
    try:
        routine = process.cblas_sgemm
    except AttributeError:
        return "reference"  # nothing is in scope before MLX's own
    info = _DlInfo()
    process.dladdr(ctypes.cast(routine, ctypes.c_void_p), ctypes.byref(info))
    name = Path(os.fsdecode(info.file or b"")).name
    return next((known for known in _KNOWN if known in name), name)
