"""Names what KV caches depend on: the contents of a model's files, the type of number, and who computes."""

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import threading
from importlib import metadata
from pathlib import Path

from plimsoll.engine.protocol import EngineOptions, ModelInfo

_DIGESTS = "digests.json"
_MOST_DIGESTS = 1000
_CHUNK = 4 << 20
_FORMAT = 1
_PATTERNS = ("*.safetensors", "config.json")


class Given(Exception):
    """Nobody waits for the fingerprint any more."""


def fingerprint(
    folder: Path, options: EngineOptions, info: ModelInfo, digests: Path, stop: threading.Event | None = None
) -> str:
    """A name for all conversations of the model in ``folder``; ``digests`` is a folder to remember hashes in.

    Every byte of the weights counts. A file is hashed again only where the system says that it may have changed: inode,
    size, or one of the times of its last write and of its last change, of which the latter can't be set by anybody.

    Raises ``OSError`` for files that can't be read, and ``Given`` when ``stop`` is set.
    """
    files = [file for pattern in _PATTERNS for file in sorted(folder.glob(pattern))]
    if options.adapter:
        files += sorted(one for one in Path(options.adapter).glob("*") if one.is_file())
    known = _remembered(digests / _DIGESTS)
    found = {str(file.resolve()): _digest(file.resolve(), known, stop) for file in files}
    if any(known.get(path) != one for path, one in found.items()):
        _remember(digests, {**known, **found})
    told = [[Path(path).name, one[-1]] for path, one in found.items()]
    versions = [metadata.version(name) for name in ("mlx", "mlx-lm")]
    # Packed or dense, the weights are the same numbers: a model that is loaded in its faster form goes on where it was.
    computed_in = info.dtype.rpartition(", ")[2]
    text = json.dumps([_FORMAT, sys.byteorder, told, versions, info.device, computed_in])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def is_remembered(folder: Path, options: EngineOptions, digests: Path) -> bool:
    """Whether ``fingerprint`` would be quick."""
    known = _remembered(digests / _DIGESTS)
    files = list(folder.glob("*.safetensors"))
    if options.adapter:
        files += [one for one in Path(options.adapter).glob("*") if one.is_file()]
    with contextlib.suppress(OSError):
        return all(known.get(str(one.resolve()), [])[:-1] == _status(one.resolve()) for one in files)
    return False


def _status(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _digest(file: Path, known: dict[str, list[int | str]], stop: threading.Event | None) -> list[int | str]:
    status = _status(file)
    before = known.get(str(file))
    if before and before[:-1] == status:
        return before
    hashed = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            if stop and stop.is_set():
                raise Given
            hashed.update(chunk)
    return [*status, hashed.hexdigest()]


def _remembered(file: Path) -> dict[str, list[int | str]]:
    try:
        number = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(number, "rb") as opened:
            known = json.loads(opened.read())
        return {str(path): list(one) for path, one in known.items() if len(one) == 6}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _remember(folder: Path, digests: dict[str, list[int | str]]) -> None:
    newest = dict(list(digests.items())[-_MOST_DIGESTS:])
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, suffix=".part") as file:
        json.dump(newest, file)
    Path(file.name).replace(folder / _DIGESTS)
