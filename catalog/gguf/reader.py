"""What the header of a GGUF file says: metadata with typed access, tensors and the types they may have."""

import math
import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from plimsoll.catalog.source import split_parts


class GgufError(ValueError):
    """The file can't be converted; the message says why in one line."""


class Layout(NamedTuple):
    """How a tensor type lies in the file: blocks of ``block`` values, ``block_bytes`` each."""

    name: str
    block: int
    block_bytes: int


SUPPORTED = {
    0: Layout("F32", 1, 4),
    1: Layout("F16", 1, 2),
    2: Layout("Q4_0", 32, 18),
    3: Layout("Q4_1", 32, 20),
    6: Layout("Q5_0", 32, 22),
    7: Layout("Q5_1", 32, 24),
    8: Layout("Q8_0", 32, 34),
    10: Layout("Q2_K", 256, 84),
    11: Layout("Q3_K", 256, 110),
    12: Layout("Q4_K", 256, 144),
    13: Layout("Q5_K", 256, 176),
    14: Layout("Q6_K", 256, 210),
    16: Layout("IQ2_XXS", 256, 66),
    17: Layout("IQ2_XS", 256, 74),
    18: Layout("IQ3_XXS", 256, 98),
    19: Layout("IQ1_S", 256, 50),
    20: Layout("IQ4_NL", 32, 18),
    21: Layout("IQ3_S", 256, 110),
    22: Layout("IQ2_S", 256, 82),
    23: Layout("IQ4_XS", 256, 136),
    29: Layout("IQ1_M", 256, 56),
    30: Layout("BF16", 1, 2),
    34: Layout("TQ1_0", 256, 54),
    35: Layout("TQ2_0", 256, 66),
    39: Layout("MXFP4", 32, 17),
}


class Tensor(msgspec.Struct, frozen=True):
    """One tensor. ``shape`` has the rows first, as MLX counts; ``start`` is its first byte in the file ``path``."""

    name: str
    shape: tuple[int, ...]
    layout: Layout
    start: int
    size: int
    path: str


class Header(msgspec.Struct, frozen=True):
    """What a GGUF file says about itself."""

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]

    def integer(self, key: str, default: int | None = None, *, least: int = 0) -> int:
        """A whole number of at least ``least``. Raises ``GgufError`` where it is absent or something else."""
        value = self.metadata.get(key, default)
        if value is None:
            raise GgufError(f"the metadata key {key} is missing")
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise GgufError(f"the metadata key {key} is {shown(value)}, expected a whole number from {least}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0. Raises ``GgufError`` where it is absent or something else."""
        value = self.metadata.get(key, default)
        if value is None:
            raise GgufError(f"the metadata key {key} is missing")
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise GgufError(f"the metadata key {key} is {shown(value)}, expected a number above 0")
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.metadata.get(key, default)
        if not isinstance(value, bool):
            raise GgufError(f"the metadata key {key} is {shown(value)}, expected true or false")
        return value

    def text(self, key: str, default: str = "") -> str:
        value = self.metadata.get(key, default)
        if not isinstance(value, str):
            raise GgufError(f"the metadata key {key} is {shown(value)}, expected text")
        return value

    def list_of(self, key: str, kind: type) -> list[Any]:
        """A list whose items all are of type ``kind``; empty where the key is absent."""
        value = self.metadata.get(key, [])
        if not isinstance(value, list) or any(type(item) is not kind for item in value):
            raise GgufError(f"the metadata key {key} is not a list of {kind.__name__}")
        return value


def shown(value: Any) -> str:
    """A value of a stranger's file, short and on one line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_MAX_ALIGNMENT = 1 << 20
_MAX_HEADER_BYTES = 64 << 20  # vocabularies of 262,144 tokens take 15 MB
_MAX_VALUES = 4 << 20  # of one list: as Python objects they take 30 times their bytes
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_U32, _U64 = _SCALARS[4], _SCALARS[10]
_OTHER_TYPES = {9: "Q8_1", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64"}


def read_header(path: Path) -> Header:
    """The header of the GGUF file at ``path``; of a split model's first part, with the tensors of all parts.

    Raises:
        GgufError: no GGUF, cut off, inconsistent, or of a version or tensor type that is not supported.
        OSError: the file can't be read.

    """
    header = _read_file(path)
    count = header.integer("split.count", 1)
    if count <= 1:
        return header
    if header.integer("split.no") != 0:
        raise GgufError(f"the file is one of {count} parts and not the first, which is the one to name")
    parts = split_parts(path)
    if len(parts) != count:
        raise GgufError(f"the file says that it is one of {count} parts, and its name says {len(parts)}")
    for part in parts[1:]:
        if not part.is_file():
            raise GgufError(f"the part {part.name} of the model is not there")
        for name, tensor in _read_file(part).tensors.items():
            if name in header.tensors:
                raise GgufError(f"the tensor {shown(name)} is in two parts")
            header.tensors[name] = tensor
    return header


def _read_file(path: Path) -> Header:
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise GgufError("the file is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, str(path)).header()


class _Reader:
    def __init__(self, data: mmap.mmap, path: str) -> None:
        self._data, self._path = data, path
        self._at = 0

    def header(self) -> Header:
        if self._data[:4] != b"GGUF":
            raise GgufError("the file is not a GGUF file: it does not begin with the letters GGUF")
        self._at = 4
        version = self._number(_U32)
        if version not in {2, 3}:
            raise GgufError(f"GGUF version {version} is not supported (2 and 3, little-endian, are)")
        tensor_count = self._count("tensors", least_bytes=24)
        metadata_count = self._count("metadata keys", least_bytes=13)
        metadata: dict[str, Any] = {}
        for _ in range(metadata_count):
            key = self._string()
            if key in metadata:
                raise GgufError(f"the metadata key {shown(key)} is written twice")
            metadata[key] = self._value(self._number(_U32))
        return Header(metadata, self._tensors(tensor_count, metadata.get("general.alignment", 32)))

    def _tensors(self, count: int, alignment: Any) -> dict[str, Tensor]:
        if not isinstance(alignment, int) or not 8 <= alignment <= _MAX_ALIGNMENT or alignment % 8:
            raise GgufError(f"general.alignment is {shown(alignment)}, expected a multiple of 8")
        infos = [self._tensor_info() for _ in range(count)]
        start_of_data = -(-self._at // alignment) * alignment
        tensors: dict[str, Tensor] = {}
        for name, shape, layout, offset in infos:
            if name in tensors:
                raise GgufError(f"the tensor {shown(name)} is there twice")
            if offset % alignment:
                raise GgufError(f"the tensor {shown(name)} begins at {offset}, no multiple of {alignment}")
            size = math.prod(shape) // layout.block * layout.block_bytes
            start = start_of_data + offset
            if start + size > len(self._data):
                raise GgufError(
                    f"the file is cut off: the tensor {shown(name)} ends at byte {start + size} "
                    f"and the file has {len(self._data)}"
                )
            tensors[name] = Tensor(name, shape, layout, start, size, self._path)
        return tensors

    def _tensor_info(self) -> tuple[str, tuple[int, ...], Layout, int]:
        name = self._string()
        dimensions = self._number(_U32)
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise GgufError(f"the tensor {shown(name)} has {dimensions} dimensions, expected 1 to {_MAX_DIMENSIONS}")
        shape = tuple(self._number(_U64) for _ in range(dimensions))[::-1]
        kind = self._number(_U32)
        layout = SUPPORTED.get(kind)
        if layout is None:
            supported = ", ".join(layout.name for layout in SUPPORTED.values())
            raise GgufError(
                f"the tensor {shown(name)} is of type {_OTHER_TYPES.get(kind, kind)}, supported are {supported}"
            )
        if min(shape) < 1 or shape[-1] % layout.block:
            raise GgufError(f"the tensor {shown(name)} of type {layout.name} has the impossible shape {shape}")
        return name, shape, layout, self._number(_U64)

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        scalar = _SCALARS.get(kind)
        if scalar is None:
            raise GgufError(f"a metadata value at byte {self._at} is of the unknown type {kind}")
        return self._number(scalar)

    def _array(self) -> list[Any]:
        kind = self._number(_U32)
        if kind == _STRING:
            return [self._string() for _ in range(self._count("strings", least_bytes=8))]
        scalar = _SCALARS.get(kind)
        if scalar is None:
            raise GgufError(f"a metadata list at byte {self._at} is of the unsupported type {kind}")
        count = self._count("values", least_bytes=scalar.size)
        raw = self._take(count * scalar.size)
        return [item[0] for item in scalar.iter_unpack(raw)]

    def _count(self, what: str, least_bytes: int) -> int:
        """A count that the rest of the file can hold: a broken one must not allocate."""
        count: int = self._number(_U64)
        if count > _MAX_VALUES:
            raise GgufError(f"{count} {what} are announced at byte {self._at}, above the bound of {_MAX_VALUES}")
        if count * least_bytes > len(self._data) - self._at:
            raise GgufError(f"the file is cut off or broken: {count} {what} are announced at byte {self._at}")
        return count

    def _string(self) -> str:
        at = self._at
        try:
            return self._take(self._number(_U64)).decode("utf-8")
        except UnicodeDecodeError:
            raise GgufError(f"the text at byte {at} is not UTF-8") from None

    def _number(self, scalar: struct.Struct) -> Any:
        return scalar.unpack(self._take(scalar.size))[0]

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise GgufError(f"the file is cut off: {size} bytes at {self._at} are past its end ({len(self._data)})")
        if end > _MAX_HEADER_BYTES:
            raise GgufError(f"the header has more than the {_MAX_HEADER_BYTES >> 20} MiB that it may have")
        taken = self._data[self._at : end]
        self._at = end
        return taken
