"""The environment of a worker process: which BLAS, and how glibc's heap behaves."""

import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Literal

# Debian, Ubuntu, Fedora, Arch: the pthread build where there is a choice, for MLX brings no OpenMP.
_OPENBLAS = (
    "usr/lib/*-linux-gnu/openblas-pthread/libopenblas.so.0",
    "usr/lib/*-linux-gnu/libopenblas.so.0",
    "usr/lib64/libopenblasp.so.0",
    "usr/lib64/libopenblas.so.0",
    "usr/lib/libopenblas.so.0",
)


def worker_environment(blas: str, *, root: Path = Path("/"), platform: str = sys.platform) -> dict[str, str]:
    """Variables to set over the front's own; ``blas`` as the key engine.blas, ``root`` is where library paths begin.

    The Linux wheel of MLX computes with the reference BLAS on one thread; OpenBLAS put before it makes float32
    prefill 8 times as fast.
    """
    if platform != "linux":
        return {}
    # Without it glibc keeps most of what MLX frees: blocks above this size go back to the system at once.
    variables = {"MALLOC_MMAP_THRESHOLD_": "262144"}
    library = find_openblas(root) if blas == "auto" else (None if blas == "none" else blas)
    if library:
        variables["LD_PRELOAD"] = ":".join(filter(None, (library, os.environ.get("LD_PRELOAD"))))
    return variables


def find_openblas(root: Path = Path("/")) -> str | None:
    """The path of an installed OpenBLAS, if any."""
    found = (path for pattern in _OPENBLAS for path in sorted(root.glob(pattern)))
    return str(first) if (first := next(found, None)) else None


def compute_device(platform: str = sys.platform) -> Literal["cpu", "gpu"]:
    """What MLX will compute on, as far as it can be told without importing it."""
    if platform == "darwin":
        return "gpu"
    installed = (name for name in ("mlx-cuda", "mlx-cuda-12", "mlx-cuda-13") if _is_installed(name))
    return "gpu" if any(installed) else "cpu"


def _is_installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def default_stop_grace_s(platform: str = sys.platform) -> float:
    """Seconds between SIGTERM and SIGKILL: on macOS a hard kill is said to strand wired memory until a reboot."""
    return 15.0 if platform == "darwin" else 2.0
