"""Calls as Gemma writes them: ``call:NAME{key:VALUE}``, with strings between marks of their own."""

import json
from collections.abc import Callable

from plimsoll.engine.dialect.calls.named_calls import read_name
from plimsoll.engine.dialect.calls.writing import Calls, NoCall
from plimsoll.engine.dialect.mending import mend_value
from plimsoll.engine.dialect.template_source import Reading, Source, nothing
from plimsoll.engine.dialect.values import properties, read_value

_QUOTES = ('<|"|>', "<escape>")
_MOST_DEPTH = 32


def read_gemma(source: Source, calls: Calls, end: str) -> Reading[None]:
    """Read one call and ``end``. Raises ``NoCall`` where none stands there."""
    yield from source.space()
    if not (yield from source.take("call:")):
        raise NoCall
    name = yield from read_name(source)
    yield from source.space()
    if not (yield from source.take("{")):
        raise NoCall
    write = calls.begin(name)
    kinds = properties(calls.tools, calls.offered(name) or name)
    yield from _object(source, write, kinds, 0)
    yield from source.space()
    yield from source.take(end)


def _object(
    source: Source, write: Callable[[str], None], kinds: dict[str, frozenset[str] | None], depth: int
) -> Reading[None]:
    """What follows an opening brace, with the closing one."""
    begun = False
    while True:
        yield from source.space(",")
        if (yield from source.take("}")) or not (yield from source.peek()):
            break
        found: list[str] = []
        quote = yield from source.take(*_QUOTES)
        if quote:
            yield from source.until((quote,), found.append)
        if not (yield from source.until((":",), nothing if quote else found.append)):
            break
        key = "".join(found).strip().strip("\"'")
        write((", " if begun else "{") + _json(key) + ": ")
        begun = True
        yield from _value(source, write, kinds.get(key), depth)
    write("}" if begun else "{}")


def _value(source: Source, write: Callable[[str], None], kinds: frozenset[str] | None, depth: int) -> Reading[None]:
    yield from source.space()
    if quote := (yield from source.take(*_QUOTES)):
        if kinds and "string" not in kinds:
            pieces: list[str] = []
            yield from source.until((quote,), pieces.append)
            write(_json(read_value("".join(pieces), kinds)))
            return
        write('"')
        yield from source.until((quote,), lambda text: write(_json(text)[1:-1]))
        write('"')
        return
    letter = yield from source.peek()
    if letter == "{" and depth < _MOST_DEPTH:
        source.at += 1
        yield from _object(source, write, {}, depth + 1)
    elif letter == "[" and depth < _MOST_DEPTH:
        source.at += 1
        yield from _list(source, write, depth + 1)
    elif letter == '"':
        yield from mend_value(source, write)
    else:
        yield from _bare(source, write, kinds)


def _list(source: Source, write: Callable[[str], None], depth: int) -> Reading[None]:
    write("[")
    begun = False
    while True:
        yield from source.space(",")
        if (yield from source.take("]")) or not (yield from source.peek()):
            break
        if (yield from source.starts("}")):
            break
        write(", " if begun else "")
        begun = True
        yield from _value(source, write, None, depth)
    write("]")


def _bare(source: Source, write: Callable[[str], None], kinds: frozenset[str] | None) -> Reading[None]:
    found: list[str] = []
    if mark := (yield from source.until((",", "}", "]", "<"), found.append)):
        source.at -= len(mark)
        if mark == "<":
            source.at += 1
    write(_json(read_value("".join(found).strip(), kinds)))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
