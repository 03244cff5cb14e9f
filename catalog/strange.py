"""Small files of a model's folder. A stranger wrote them: they are read with bounds, and fail with a sentence."""

import stat
from pathlib import Path
from typing import Any, TypeVar

import msgspec

MAX_BYTES = 32 << 20
"""The largest index of a published model has 13 MB."""

_T = TypeVar("_T")


def read_json(file: Path, kind: type[_T]) -> _T:
    """``file`` as ``kind``. Raises ``OSError``, or ``ValueError`` for one that is too large or something else."""
    return decode(read_bytes(file), kind, file.name)


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object. Raises as ``read_json`` does."""
    return read_json(file, dict[str, Any])


def read_bytes(file: Path) -> bytes:
    """The whole of ``file``. Raises ``OSError``, or ``ValueError`` where it is no file or above ``MAX_BYTES``."""
    if not stat.S_ISREG(file.stat().st_mode):  # opening a pipe would wait for its other end
        raise ValueError(f"{file.name} is not a regular file")
    with file.open("rb") as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{file.name} has more than the {MAX_BYTES >> 20} MiB that such a file may have")
    return content


def decode(content: bytes, kind: type[_T], name: str) -> _T:
    """The JSON ``content`` of the file ``name``. Raises ``ValueError``."""
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} is not what it should be: {error}") from None
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply") from None
