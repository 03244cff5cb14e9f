"""Breaks bytes and structures in the ways that break parsers. All from one seed: a case can be run again."""

import copy
import random
import struct
from typing import Any

NUMBERS = (0, 1, -1, 2, 7, 8, 127, 128, 255, 256, 1 << 15, 65535, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
NUMBERS += (1 << 32, 1 << 40, (1 << 53) + 1, (1 << 63) - 1, (1 << 64) - 1, -(1 << 31), -(1 << 63), 10**30)
FLOATS = (0.0, -0.0, 0.5, -1.5, 1e-308, 1e308, 3.0)
TEXTS = (
    "",
    "a",
    " ",
    "\n",
    "\0",
    "..",
    "../x",
    "/",
    "~",
    "%s",
    "{}",
    "[",
    "é",
    "🚢",
    "\u202e",
    "null",
    "1",
    "-1",
    "nan",
)
TEXTS += ("a" * 300, "ÿ" * 5000, "\ud7ff", "a.b.c", "__class__", "{{ 1 }}", "[...]", "`x`", "F32", "16GiB", "1e999h")
_WIDTHS = {1: "B", 2: "H", 4: "I", 8: "Q"}
_MOST_BYTES = 60_000  # what a socket's buffer holds
_DEEP = (3, 40, 200, 3000)


class Mutator:
    """The source of all chance in one case."""

    def __init__(self, seed: object) -> None:
        self.random = random.Random(repr(seed))

    def bytes(self, data: bytes, *, within: int | None = None) -> bytes:
        """``data`` with one to eight things broken in its first ``within`` bytes."""
        broken = bytearray(data)
        for _ in range(self.random.choice((1, 1, 1, 2, 3, 8))):
            self._break(broken, min(len(broken), within or len(broken)))
        return bytes(broken[: max(_MOST_BYTES, len(data))])

    def _break(self, data: bytearray, size: int) -> None:
        rnd = self.random
        if not size:
            data += rnd.randbytes(rnd.randrange(1, 20))
            return
        at = rnd.randrange(size)
        end = min(size, at + rnd.choice((1, 2, 4, 8, 32, 200)))
        match rnd.randrange(9):
            case 0:
                data[at] ^= 1 << rnd.randrange(8)
            case 1:
                data[at] = rnd.choice((0, 1, 0x7F, 0x80, 0xC0, 0xFF, rnd.randrange(256)))
            case 2 | 3:
                self._number(data, at)
            case 4:
                del data[at:end]
            case 5:
                data[at:at] = data[at:end] * rnd.choice((1, 1, 2, 50))
            case 6:
                data[at:at] = rnd.randbytes(rnd.choice((1, 4, 16)))
            case 7:
                other = rnd.randrange(size)
                data[at:end] = data[other : other + end - at]
            case 8:
                del data[at:]

    def _number(self, data: bytearray, at: int) -> None:
        """Put a telling number there, in a width and byte order that the format may use."""
        width = self.random.choice(tuple(_WIDTHS))
        order = self.random.choice("<>")
        number = self.random.choice(NUMBERS) & ((1 << 8 * width) - 1)
        data[at : at + width] = struct.pack(order + _WIDTHS[width], number)

    def structure(self, value: Any) -> Any:
        """A copy of plain data (dicts, lists, scalars) with one to three places changed."""
        holder = [copy.deepcopy(value)]
        for _ in range(self.random.choice((1, 1, 1, 2, 3))):
            places = list(_places(holder))
            container, key = self.random.choice(places)
            self._change(container, key)
        return holder[0]

    def _change(self, container: Any, key: Any) -> None:
        rnd = self.random
        old = container[key]
        match rnd.randrange(8):
            case 0 if isinstance(container, dict):
                del container[key]
            case 1 if isinstance(container, dict):
                container[rnd.choice(TEXTS)] = container.pop(key)
            case 2 if isinstance(container, list):
                container.extend([old] * rnd.choice((1, 3, 200)))
            case 3:
                container[key] = self.deep(old)
            case 4 if isinstance(old, int | float):
                container[key] = old + rnd.choice((-1, 1, 0.5, 1 << 31))
            case _:
                container[key] = self.scalar()

    def scalar(self) -> Any:
        """Anything that is odd in most places."""
        rnd = self.random
        odd: tuple[Any, ...] = (None, True, False, [], {}, [None], {"": None}, [[]], {"a": {"a": []}})
        return copy.deepcopy(
            rnd.choice((*odd, rnd.choice(NUMBERS), rnd.choice(FLOATS), rnd.choice(TEXTS), -rnd.random()))
        )

    def deep(self, value: Any) -> Any:
        """``value`` inside many lists or dicts."""
        as_list = self.random.random() < 0.5
        for _ in range(self.random.choice(_DEEP[:3])):
            value = [value] if as_list else {"a": value}
        return value

    def nested_text(self) -> str:
        """The beginning of a text in JSON or YAML that never closes what it opens."""
        return self.random.choice(("[", "{a: ", '{"a":', "- ", "&a [")) * self.random.choice(_DEEP)


def _places(container: Any) -> Any:
    """Every (container, key) in a structure."""
    items = container.items() if isinstance(container, dict) else enumerate(container)
    for key, value in items:
        yield container, key
        if isinstance(value, dict | list):
            yield from _places(value)
