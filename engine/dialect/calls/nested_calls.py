"""Calls as MiniMax M3 writes them: tags named like the keys, nested as deep as the values, each after a mark."""

import json
from typing import Any

from plimsoll.engine.dialect.calls.writing import Calls, NoCall
from plimsoll.engine.dialect.template_source import Reading, Source, nothing
from plimsoll.engine.dialect.values import read_value, referred, types

MARK = "]<]minimax[>["
_MOST_DEPTH = 32


def read_nested(source: Source, calls: Calls) -> Reading[None]:
    """What follows the mark and ``<tool_call>``. Raises ``NoCall`` where no call does."""
    first = True
    while True:
        yield from source.space()
        if not (yield from source.take(MARK + '<invoke name="', '<invoke name="')):
            break
        found: list[str] = []
        if not (yield from source.until(('">',), found.append)):
            break
        name = "".join(found)
        write = calls.begin(name)
        first = False
        schema = next((tool.parameters for tool in calls.tools if tool.name == calls.offered(name)), {})
        value = yield from _children(source, schema, schema, 0)
        write(json.dumps(value if isinstance(value, dict) else {}, ensure_ascii=False))
    if first:
        raise NoCall
    yield from source.take(MARK + "</tool_call>", "</tool_call>")


def _children(source: Source, schema: Any, root: dict[str, Any], depth: int) -> Reading[Any]:
    """The elements up to the closing tag, or the text where there are none."""
    text: list[str] = []
    named: dict[str, Any] = {}
    items: list[Any] = []
    while True:
        mark = yield from source.until((MARK,), text.append)
        if mark is None:
            break
        tag: list[str] = []
        yield from source.until((">",), tag.append)
        name = "".join(tag)
        if name.startswith("</"):
            break
        name = name.removeprefix("<")
        if depth == _MOST_DEPTH:
            yield from source.until((f"{MARK}</{name}>",), nothing)
            continue
        is_item = name == "item" and not _declares(schema, root, name)
        inner = yield from _children(source, _inner(schema, root, name, item=is_item), root, depth + 1)
        if is_item:
            items.append(inner)
        else:
            named[name] = inner
    if items or named:
        return items or named
    kinds = types(schema, root)
    written = "".join(text)
    if not written and kinds:
        empty: dict[str, Any] = {"object": {}, "array": []}
        return next((empty[kind] for kind in empty if kind in kinds and "string" not in kinds), written)
    return read_value(written, kinds)


def _resolved(schema: Any, root: dict[str, Any]) -> dict[str, Any]:
    for _ in range(8):
        if not isinstance(schema, dict) or not isinstance(reference := schema.get("$ref"), str):
            break
        schema = referred(reference, root)
    return schema if isinstance(schema, dict) else {}


def _declares(schema: Any, root: dict[str, Any], name: str) -> bool:
    return name in (_resolved(schema, root).get("properties") or {})


def _inner(schema: Any, root: dict[str, Any], name: str, *, item: bool) -> Any:
    known = _resolved(schema, root)
    return known.get("items") if item else (known.get("properties") or {}).get(name)
