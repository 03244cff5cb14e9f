"""The header of a safetensors file, which says what tensors it holds (https://github.com/huggingface/safetensors).

Nothing that it says is believed before it fits the file: sizes are what memory is granted by.
"""

import math
import os
import stat
import struct
from pathlib import Path
from typing import Annotated

import msgspec

from plimsoll.catalog.strange import MAX_BYTES, decode

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
