"""The environment of a worker process: which BLAS, and how glibc's heap behaves."""

import logging
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Literal

from plimsoll.engine.openblas import find_openblas, packaged_openblas

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
