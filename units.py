"""The configuration's own types: sizes and times as people write them, and secrets."""

import re
from typing import Any

_SIZE_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("B", 1000), ("iB", 1024), ("", 1024))
}
_TIME_UNITS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LEAST_SECRET = 8
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


class Bytes(int):
    """A size in bytes; in YAML a number or text like ``16GiB``, ``1.5GB``, ``512M``."""


class Seconds(float):
    """A time in seconds; in YAML a number or text like ``250ms``, ``30s``, ``5m``, ``2h``."""


# Larger values are typing errors, and some timers and counters can't hold them.
_MOST = {Bytes: float(1 << 60), Seconds: 3660 * 86400.0}


class Secret:
    """A text that is only told by ``reveal``: in logs, errors and printed configurations it is ``***``."""

    __slots__ = ("_text",)
    HIDDEN = "***"

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return self.HIDDEN

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


def from_yaml(kind: type, value: Any) -> Any:
    """Msgspec's hook for the types of this module."""
    return _secret(value) if kind is Secret else quantity(kind, value)


def to_plain(value: Any) -> Any:
    """Msgspec's hook the other way."""
    return value.HIDDEN if isinstance(value, Secret) else int(value) if isinstance(value, Bytes) else float(value)


def check_secret(text: str) -> None:
    """Raise ``ValueError`` for a key that an HTTP header can't carry or that is easy to guess."""
    if len(text) < _LEAST_SECRET or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(f"Expected {_LEAST_SECRET} or more ASCII characters without spaces")


def quantity(kind: type, value: Any) -> Any:
    """Msgspec's hook for ``Bytes`` and ``Seconds``."""
    units, example = (_SIZE_UNITS, "16GiB or 512MB") if kind is Bytes else (_TIME_UNITS, "30s or 5m")
    match = _QUANTITY.fullmatch(str(value)) if isinstance(value, int | float | str) else None
    if match is None or isinstance(value, bool) or match[2] not in units:
        what = "a size" if kind is Bytes else "a time"
        raise ValueError(f"Expected {what} like {example}")
    amount = float(match[1]) * units[match[2]]
    if amount > _MOST[kind]:
        raise ValueError(f"Expected {'a size up to 1 EiB' if kind is Bytes else 'a time up to 10 years'}")
    return kind(amount)


def _secret(value: Any) -> Secret:
    if not isinstance(value, str):
        raise ValueError("Expected a text; put it between quotes")  # noqa: TRY004 - what msgspec turns into its own
    if value == Secret.HIDDEN:
        raise ValueError("Expected the key itself, not the *** that is printed in its place")
    check_secret(value)
    return Secret(value)
