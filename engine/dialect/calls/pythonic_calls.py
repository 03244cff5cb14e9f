"""Calls as Python writes them, ``[f(a=1), g(b="x")]``: LFM2 and Llama 4."""

import json
import re
from typing import Any

from plimsoll.engine.dialect.calls.writing import Calls, NoCall
from plimsoll.engine.dialect.mending import NotJson, mend_value, mended
from plimsoll.engine.dialect.template_source import Reading, Source
from plimsoll.engine.dialect.values import properties, read_value

_NAME = re.compile(r"[\w.\-]*")
_LOOKAHEAD = 120
_FOLLOWS = re.compile(r"\s*(?:\)\s*(?:[,\]<;]|$)|,\s*[\w.\-]+\s*=(?!=)|$)")
_KEY = re.compile(r"[\w.\-]*")


def read_pythonic(source: Source, calls: Calls, ends: tuple[str, ...] = ()) -> Reading[None]:
    """Read calls, in a list or not, up to one of ``ends``. Raises ``NoCall`` where the first is none."""
    yield from source.space()
    yield from source.take("[")
    first = True
    while True:
        yield from source.space(",;")
        begin = source.at
        name = yield from _match(source, _NAME)
        if not name or not (yield from source.take("(")):
            source.at = begin
            if first:
                raise NoCall
            break
        write = calls.begin(name)
        first = False
        written = yield from _arguments(source, calls, calls.offered(name) or name)
        write(json.dumps(written, ensure_ascii=False))
    yield from source.space("])")
    yield from source.take(*ends)


def _arguments(source: Source, calls: Calls, name: str) -> Reading[dict[str, Any]]:
    kinds = properties(calls.tools, name)
    found: dict[str, Any] = {}
    while True:
        yield from source.space(",")
        if (yield from source.take(")")) or not (yield from source.peek()):
            return found
        begin = source.at
        key = yield from _match(source, _KEY)
        yield from source.space()
        named = bool((yield from source.take("=")))
        if not named:
            source.at = begin  # without a name: it means the next parameter
            key = next((one for one in kinds if one not in found), "")
        yield from source.space()
        if named and key and (yield from source.peek()) in ("'", '"'):
            text = yield from _string(source)
            found[key] = read_value(text, kinds[key]) if kinds.get(key) else text
            continue
        pieces: list[str] = []
        try:
            whole = yield from mend_value(source, pieces.append, python=True)
        except NotJson:
            source.at += 1 if source.at < len(source.text) else 0
            continue
        if key and (whole or pieces):
            found[key] = _typed("".join(pieces), kinds.get(key))


def _string(source: Source) -> Reading[str]:
    """A string up to the quote that another argument or the call's end follows: many escape no quote in it.

    Where it holds line breaks it was not escaped at all.
    """
    quote = source.text[source.at]
    source.at += 1
    begin = search = source.at
    while True:
        end = source.text.find(quote, search)
        if end < 0:
            if source.ended:
                end = len(source.text)
                break
            search = max(begin, len(source.text))
            yield
            continue
        source.at = end + 1
        yield from source.has(_LOOKAHEAD)
        slashes = len(source.text[begin:end]) - len(source.text[begin:end].rstrip("\\"))
        if slashes % 2 == 0 and _FOLLOWS.match(source.text, source.at, source.at + _LOOKAHEAD):
            break
        search = end + 1
    text = source.text[begin:end]
    source.at = min(end + 1, len(source.text))
    if "\n" in text:
        return text
    inner = text if quote == '"' else text.replace('"', '\\"')
    try:
        return str(json.loads(mended(f'"{inner}"')))
    except (NotJson, ValueError):
        return text


def _typed(text: str, kinds: frozenset[str] | None) -> Any:
    """The value; a string where the schema wants none is read again, for some write all values in quotes."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return read_value(value, kinds) if isinstance(value, str) and kinds else value


def _match(source: Source, pattern: re.Pattern[str]) -> Reading[str]:
    begin = source.at
    while True:
        match = pattern.match(source.text, begin)
        end = match.end() if match else begin
        if end < len(source.text) or source.ended:
            source.at = end
            return source.text[begin:end]
        yield
