"""The files of the prefix store: one piece each, with a header that tells what it is and checksums over everything.

    magic, 8 bytes | length of the header, 4 | CRC-32 of the header, 4 | header, JSON | arrays, each at a multiple of 64
    bytes behind the header | CRC-32 of all arrays, 4

Numbers are little-endian. Nothing here touches MLX: arrays are numpy's, bfloat16 travels as the same bits in uint16.
"""

import os
import stat
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

BLOCK, STATE = ".block", ".state"
PART = ".part"
_MAGIC = b"plprefix"
_HEAD = struct.Struct("<8sII")
_CHECK = struct.Struct("<I")
_ALIGNED = 64
_MOST_HEADER_BYTES = 1 << 20
_DTYPES = {
    "float32": "<f4",
    "float16": "<f2",
    "bfloat16": "<u2",
    "uint32": "<u4",
    "int32": "<i4",
    "int64": "<i8",
    "uint8": "u1",
    "bool": "?",
}


class BrokenPiece(Exception):
    """The file is no piece of a prefix store, or not all of it is there, or it was changed."""


class ArrayHead(msgspec.Struct, frozen=True, array_like=True):
    dtype: str
    shape: tuple[int, ...]


class Head(msgspec.Struct, frozen=True):
    """``tokens`` go from ``start`` to the block's end or the snapshot's position; ``parent`` names what is before them.

    ``reach`` and ``states`` are a snapshot's; in ``states`` an array is the number of its place in ``arrays``.
    """

    parent: str
    start: int
    tokens: tuple[int, ...]
    arrays: tuple[ArrayHead | None, ...]
    reach: int = 0
    states: Any = None

    @property
    def data_bytes(self) -> int:
        return sum(_padded(_array_bytes(one)) for one in self.arrays if one)


@dataclass(frozen=True, slots=True)
class Piece:
    head: Head
    arrays: list[NDArray[Any] | None]


def write_piece(path: Path, head: Head, arrays: Sequence[NDArray[Any] | None]) -> int:
    """Write the file, for its owner only and whole or not at all; returns its size."""
    text = msgspec.json.encode(head)
    text += b" " * (-(_HEAD.size + len(text)) % _ALIGNED)
    part = path.with_suffix(f".{os.getpid()}{PART}")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(_HEAD.pack(_MAGIC, len(text), zlib.crc32(text)) + text)
            check = 0
            for array in arrays:
                if array is None:
                    continue
                flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                for data in (flat, bytes(-array.nbytes % _ALIGNED)):
                    file.write(data)
                    check = zlib.crc32(data, check)
            file.write(_CHECK.pack(check))
            size = file.tell()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return size


def read_head(path: Path) -> tuple[Head, int]:
    """What a file says it holds, and its size. Raises ``BrokenPiece`` and ``OSError``."""
    with _opened(path) as descriptor:
        head, begin = _read_head(descriptor.number)
        if descriptor.size != begin + head.data_bytes + _CHECK.size:
            raise BrokenPiece("it is not as long as it says")
        return head, descriptor.size


def read_piece(path: Path) -> Piece:
    """The whole of it, checked. Raises ``BrokenPiece`` and ``OSError``."""
    with _opened(path) as descriptor:
        head, begin = _read_head(descriptor.number)
        size = head.data_bytes
        if descriptor.size != begin + size + _CHECK.size:
            raise BrokenPiece("it is not as long as it says")
        data: Any = np.empty(size + _CHECK.size, np.uint8)
        view, done = memoryview(data), 0
        while done < len(view):
            count = os.preadv(descriptor.number, [view[done:]], begin + done)
            if not count:
                raise BrokenPiece("it ends too early")
            done += count
        if zlib.crc32(view[:size]) != _CHECK.unpack(view[size:])[0]:
            raise BrokenPiece("its checksum is wrong")
    return Piece(head, list(_split(head, data)))


class _Descriptor:
    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.size = size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.number)


def _opened(path: Path) -> _Descriptor:
    """A plain file and nothing else: a pipe would keep the reader waiting for ever."""
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    status = os.fstat(number)
    if not stat.S_ISREG(status.st_mode):
        os.close(number)
        raise BrokenPiece("it is no plain file")
    return _Descriptor(number, status.st_size)


def _read_head(number: int) -> tuple[Head, int]:
    first = os.pread(number, 1 << 14, 0)
    if len(first) < _HEAD.size:
        raise BrokenPiece("it is too short")
    magic, length, check = _HEAD.unpack_from(first)
    if magic != _MAGIC or length > _MOST_HEADER_BYTES:
        raise BrokenPiece("it has no header of a piece")
    text = first[_HEAD.size : _HEAD.size + length]
    if len(text) < length:
        text += os.pread(number, length - len(text), _HEAD.size + len(text))
    if len(text) != length or zlib.crc32(text) != check:
        raise BrokenPiece("its header's checksum is wrong")
    try:
        head = msgspec.json.decode(text, type=Head)
    except msgspec.MsgspecError as error:
        raise BrokenPiece(str(error)) from None
    if any(one and (one.dtype not in _DTYPES or min(one.shape, default=1) < 0) for one in head.arrays):
        raise BrokenPiece("it has arrays of an unknown kind")
    return head, _HEAD.size + length


def _split(head: Head, data: NDArray[np.uint8]) -> Any:
    begin = 0
    for one in head.arrays:
        if one is None:
            yield None
            continue
        size = _array_bytes(one)
        yield data[begin : begin + size].view(_DTYPES[one.dtype]).reshape(one.shape)
        begin += _padded(size)


def _array_bytes(one: ArrayHead) -> int:
    count = np.dtype(_DTYPES[one.dtype]).itemsize
    for length in one.shape:
        count *= length
    return count


def _padded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
