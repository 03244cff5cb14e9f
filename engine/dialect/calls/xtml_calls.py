"""Calls as Kimi K3 writes them: ``<|open|>call tool="NAME"<|sep|>`` and an element for each argument."""

import json
import re

from plimsoll.engine.dialect.calls.writing import Calls, NoCall
from plimsoll.engine.dialect.template_source import Reading, Source, nothing
from plimsoll.engine.dialect.values import properties, read_value

_ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')


def read_xtml(source: Source, calls: Calls) -> Reading[None]:
    """What follows the mark that opens the section of calls. Raises ``NoCall`` where no call does."""
    first = True
    while True:
        yield from source.space()
        if not (yield from source.take("<|open|>call")):
            break
        name = (yield from _attributes(source)).get("tool", "")
        write = calls.begin(name)
        first = False
        kinds = properties(calls.tools, calls.offered(name) or name)
        found: dict[str, object] = {}
        while True:
            yield from source.space()
            element = yield from source.take("<|open|>argument", "<|open|>json")
            if not element:
                break
            attributes = yield from _attributes(source)
            pieces: list[str] = []
            yield from source.until((f"<|close|>{element[8:]}<|sep|>",), pieces.append)
            text = "".join(pieces)
            if element.endswith("json"):
                value = read_value(text, frozenset(["object"]))
                found |= value if isinstance(value, dict) else {}
            elif key := attributes.get("key"):
                kind = attributes.get("type")
                found[key] = read_value(text, frozenset([kind]) if kind else kinds.get(key))
        write(json.dumps(found, ensure_ascii=False))
        yield from source.take("<|close|>call<|sep|>")
    if first:
        raise NoCall
    if not (yield from source.take("<|close|>tools<|sep|>")) and not source.ended:
        yield from source.until(("<|close|>tools<|sep|>",), nothing)


def _attributes(source: Source) -> Reading[dict[str, str]]:
    pieces: list[str] = []
    yield from source.until(("<|sep|>",), pieces.append)
    found = _ATTRIBUTE.findall("".join(pieces))
    return {key: value.replace("&quot;", '"').replace("&amp;", "&") for key, value in found}
