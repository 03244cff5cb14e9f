"""Reads small files of a model's folder. Their author is not trusted: sizes are bounded, every fault is a sentence."""

import hashlib
import math
import os
import stat
import struct
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from plimsoll.catalog.source import CONVERSION, ModelSource, split_name, split_parts, split_revision

MAX_BYTES = 32 << 20
"""The largest index of a published model has 13 MB."""

_T = TypeVar("_T")


def read_json(file: Path, kind: type[_T]) -> _T:
    """``file`` as ``kind``. Raises ``OSError``, or ``ValueError`` for one that is too large or something else."""
    return decode(read_bytes(file), kind, file.name)


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object. Raises as ``read_json`` does."""
    return read_json(file, dict[str, Any])


def conversion(folder: Path) -> dict[str, Any]:
    """What the conversion that made ``folder`` lost, as ``gguf/convert.py`` writes it; empty where nothing says so."""
    try:
        return read_object(folder / CONVERSION)
    except (OSError, ValueError):
        return {}


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


_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8}
_BITS |= {"U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8}
_BITS |= {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
MOST_TENSORS = 250_000
"""The largest published model has 92,000; these take 125 MB as objects."""

_Count = Annotated[int, msgspec.Meta(ge=0)]


class Tensor(msgspec.Struct, frozen=True, gc=False):
    """One tensor; its numbers lie between the two ``data_offsets`` after the header."""

    dtype: str
    shape: Annotated[tuple[_Count, ...], msgspec.Meta(max_length=16)]
    data_offsets: tuple[_Count, _Count]

    @property
    def values(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.data_offsets[1] - self.data_offsets[0]

    @property
    def is_float(self) -> bool:
        """Whether it is made float32 on a CPU."""
        return self.dtype in _FLOATS


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of ``file`` by name.

    Raises ``OSError``, or ``ValueError`` where the file is none, is cut off or says what can't be.
    """
    if not stat.S_ISREG(file.stat().st_mode):
        raise ValueError(f"{file.name} is not a regular file")
    with file.open("rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        room = os.fstat(stream.fileno()).st_size - 8 - length
        if not length or room < 0:
            raise ValueError(f"{file.name} is not a safetensors file, or is cut off")
        if length > MAX_BYTES:
            raise ValueError(f"{file.name} has a header of {length} bytes, above the bound of {MAX_BYTES}")
        entries = decode(stream.read(length), dict[str, msgspec.Raw], f"the header of {file.name}")
    entries.pop("__metadata__", None)
    if len(entries) > MOST_TENSORS:
        raise ValueError(f"{file.name} announces {len(entries)} tensors, above the bound of {MOST_TENSORS}")
    tensors = {name: decode(raw, Tensor, f"the header of {file.name}") for name, raw in entries.items()}
    for name, tensor in tensors.items():
        _check(file.name, name, tensor, room)
    if (announced := sum(tensor.nbytes for tensor in tensors.values())) > room:
        raise ValueError(f"{file.name} announces tensors of {announced} bytes and holds {room}")
    return tensors


def _check(file: str, name: str, tensor: Tensor, room: int) -> None:
    begin, end = tensor.data_offsets
    if not begin <= end <= room:
        raise ValueError(f"{file} is cut off: {name[:80]!r} lies at {begin} to {end} of {room} bytes")
    bits = _BITS.get(tensor.dtype)
    if bits is None:
        raise ValueError(f"{file} has {name[:80]!r} of the unknown type {tensor.dtype[:20]!r}")
    if tensor.values * bits != tensor.nbytes * 8:
        raise ValueError(f"{file} gives {name[:80]!r} {tensor.nbytes} bytes, which is not what its shape takes")


_CONVERTER = 2  # counts up when a conversion's result changes, so that old ones are not used


class _Index(msgspec.Struct, frozen=True):
    """``model.safetensors.index.json``: tensor name -> file name."""

    weight_map: dict[str, str]


def local_folder(source: ModelSource, cache_dir: Path) -> Path | None:
    """The folder of MLX files that ``source`` has or will have; ``None`` for a repo not fetched yet and a fake.

    Raises ``OSError`` for a GGUF file that is not there.
    """
    match source.kind:
        case "folder":
            return Path(source.location)
        case "gguf":
            return _converted_folder(Path(source.location), cache_dir)
        case "builtin":
            return cache_dir / "builtin" / source.name
        case "repo":
            return _snapshot_folder(source.location)
        case "fake":
            return None


def problem(folder: Path) -> str | None:
    """Why ``folder`` is no whole MLX model, as the end of "FOLDER ..."; ``None`` where it is whole."""
    if not folder.is_dir():
        return "is not a folder"
    if not (folder / "config.json").is_file():
        return "has no config.json, so it is not an MLX model"
    try:
        files = _weight_files(folder)
        missing = [file.name for file in files if not file.is_file()]
    except (OSError, ValueError) as error:
        return f"has a model.safetensors.index.json that can't be read ({str(error)[:300]})"
    if not files:
        return "has no model*.safetensors (fetch or convert the model in MLX format)"
    if missing:
        return f"lacks {len(missing)} of {len(files)} weight files, the first is {missing[0]}"
    return None


def weights_bytes(folder: Path) -> int:
    """The sum of the weight files' sizes. Raises ``OSError`` for a missing one, ``ValueError`` for a bad index."""
    return sum(file.stat().st_size for file in _weight_files(folder))


def _weight_files(folder: Path) -> list[Path]:
    """The files that the index names, or else every ``model*.safetensors``."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_json(index, _Index).weight_map.values()))
        files = [folder / Path(name).name for name in names]
        whole = folder / "model.safetensors"
        # An index that a conversion left behind names files that are gone, beside weights that are whole. An index
        # that names files elsewhere was left behind by nobody.
        stale = whole.is_file() and not any(file.is_file() for file in files)
        if not stale or any(Path(name).name != name or "\0" in name for name in names):
            return files
    return sorted(folder.glob("model*.safetensors"))


def _converted_folder(file: Path, cache_dir: Path) -> Path:
    """One folder for each content of a file, or of all parts, as far as path, sizes and times tell."""
    stats = [part.stat() for part in split_parts(file)]
    key = f"{_CONVERTER}\0{file.resolve()}" + "".join(f"\0{one.st_size}\0{one.st_mtime_ns}" for one in stats)
    digest = hashlib.sha256(os.fsencode(key)).hexdigest()[:12]
    return cache_dir / "converted" / f"{split_name(file)[:80]}-{digest}"


def _snapshot_folder(location: str) -> Path | None:
    """A revision's snapshot in huggingface_hub's cache; read by hand, since its functions import an HTTP client."""
    from huggingface_hub.constants import HF_HUB_CACHE  # noqa: PLC0415 - the front process starts without it

    repo, named = split_revision(location)
    storage = Path(HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    try:
        revision = (storage / "refs" / named).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return storage / "snapshots" / revision if revision else None
