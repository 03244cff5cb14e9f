"""What msgspec finds wrong with data, taken apart for the sentences of config files and request bodies."""

import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args, get_origin

import msgspec

_HIDDEN = "[...]"
_STEPS = re.compile(r"\[\.\.\.\]|\[\d+\]|[^.\[\]]+")


class Fault(NamedTuple):
    """One ``msgspec.ValidationError``.

    ``path`` leads to the place, as in ``messages[0].role``; it is empty for the whole, and msgspec writes ``[...]`` in
    place of a mapping's key. ``missing`` or ``unknown`` names the field that lacks or is too much there; ``is_key``
    says that a key of the mapping at ``path`` is wrong and not a value. ``expected`` is msgspec's sentence.
    """

    path: str
    missing: str
    unknown: str
    is_key: bool
    expected: str

    @property
    def allowed(self) -> str:
        """``expected`` as the end of "but must be ...", without msgspec's quotes."""
        return self.expected.removeprefix("Expected ").replace("`", "")


def take_apart(error: msgspec.ValidationError) -> Fault:
    """The parts of msgspec's sentence, ``WHAT - at `PATH```."""
    text, _, where = str(error).partition(" - at ")
    _, is_key, where = where.rpartition("`key` in ")
    missing = re.search(r"missing required field `(.+)`", text)
    unknown = re.search(r"unknown field `(.+)`", text, re.DOTALL)
    path = where.strip("`").removeprefix("$").lstrip(".")
    return Fault(path, missing[1] if missing else "", unknown[1] if unknown else "", bool(is_key), text)


def find(path: str, data: Any) -> tuple[bool, Any]:
    """Whether plain ``data`` holds something at ``path``, and what; nothing is found behind a hidden key."""
    for step in _STEPS.findall(path):
        try:
            data = data[int(step[1:-1])] if step.startswith("[") else data[step]
        except (LookupError, TypeError, ValueError):
            return False, None
    return True, data


def find_hidden(path: str, data: Any, kind: Any, dec_hook: Callable[[type, Any], Any]) -> tuple[str, Any]:
    """The path with the key that fails by itself in place of the hidden one, and the value there.

    ``kind`` is the type that ``data`` was converted to. A key that is no text is the value itself.
    """
    before, _, after = path.partition(_HIDDEN)
    _, mapping = find(before, data)
    inner = after.strip(".")
    for key, value in mapping.items() if isinstance(mapping, dict) else ():
        try:
            msgspec.convert({key: value}, kind_at(before, kind), dec_hook=dec_hook)
        except msgspec.ValidationError:
            if not isinstance(key, str):
                return f"{before}.{key}", key
            return f"{before}.{key}.{inner}".rstrip("."), find(inner, value)[1]
    return path, mapping


def is_valid_key(key: Any, path: str, kind: Any) -> bool:
    """Whether the mapping at ``path`` may have this key."""
    keys = get_args(kind_at(path, kind)) or (str,)
    try:
        msgspec.convert(key, keys[0])
    except msgspec.ValidationError:
        return False
    return True


def choices(path: str, kind: Any) -> str:
    """The words that may stand at ``path``, as ``a or b``; empty where it is no choice of words."""
    found = kind_at(path, kind)
    return " or ".join(map(str, get_args(found))) if get_origin(found) is Literal else ""


def kind_at(path: str, kind: Any) -> Any:
    """The type at ``path`` of what is converted to ``kind``: of a struct's field, a list's item, a mapping's value."""
    for step in _STEPS.findall(path):
        if step.startswith("["):
            kind = (get_args(kind) or (None,))[-1]
        else:
            is_struct = isinstance(kind, type) and issubclass(kind, msgspec.Struct)
            kind = {field.name: field.type for field in msgspec.structs.fields(kind)}.get(step) if is_struct else None
    return kind
