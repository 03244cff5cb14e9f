"""What the header of a GGUF file says: metadata with typed access, tensors and the types they may have."""

import math
from typing import Any, NamedTuple

import msgspec


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
    8: Layout("Q8_0", 32, 34),
}


class Tensor(msgspec.Struct, frozen=True):
    """One tensor. ``shape`` has the rows first, as MLX counts; ``start`` is its first byte in the file."""

    name: str
    shape: tuple[int, ...]
    layout: Layout
    start: int
    size: int


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
