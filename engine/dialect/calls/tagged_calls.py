"""Calls as tags, a tag for each argument: Qwen Coder, MiniMax, DeepSeek V3.2, Seed, GLM, LongCat, MiniCPM, Muse.

A value is what stands between its tags, byte for byte; it ends at the closing tag after which another argument or
the call's end follows, so it may hold such tags itself. Strings are passed on while they come.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from plimsoll.engine.dialect.calls.named_calls import read_arguments, read_name
from plimsoll.engine.dialect.calls.writing import Calls, NoCall
from plimsoll.engine.dialect.template_source import Reading, Source
from plimsoll.engine.dialect.values import is_text, properties, read_value

_ATTRIBUTE = re.compile(r"=?\s*(?:name\s*=\s*)?[\"']?([^\"'>\s]+)[\"']?(?:\s+string\s*=\s*\"(true|false)\")?\s*")


@dataclass(frozen=True, slots=True)
class Tags:
    """``call`` and ``key`` begin tags with a name in them; where ``value`` is set key and value have a tag each.

    ``padded`` is whether a line break stands before and after each value. ``end`` closes all calls.
    """

    call: str
    call_end: str
    key: str
    key_end: str
    value_end: str
    end: str = ""
    value: str = ""
    padded: bool = False


QWEN = Tags("<function", "</function>", "<parameter", ">", "</parameter>", "</tool_call>", padded=True)
SEED = Tags("<function", "</function>", "<parameter", ">", "</parameter>", "</seed:tool_call>")
MINIMAX = Tags("<invoke", "</invoke>", "<parameter", ">", "</parameter>", "</minimax:tool_call>")
DSML = Tags("<｜DSML｜invoke", "</｜DSML｜invoke>", "<｜DSML｜parameter", ">", "</｜DSML｜parameter>")
MUSE = Tags("<atem:invoke", "</atem:invoke>", "<atem:parameter", ">", "</atem:parameter>", "</atem:function_calls>")
MINICPM = Tags("<function", "</function>", "<param", ">", "</param>")
GLM = Tags("", "</tool_call>", "<arg_key>", "</arg_key>", "</arg_value>", value="<arg_value>")
LONGCAT = Tags(
    *("", "</longcat_tool_call>", "<longcat_arg_key>", "</longcat_arg_key>", "</longcat_arg_value>"),
    value="<longcat_arg_value>",
)


def read_tagged(
    source: Source, calls: Calls, tags: Tags, *, opened: bool = False, end: str | None = None
) -> Reading[None]:
    """Read calls up to ``end`` (of the tags unless given), or to what is no further call.

    ``opened`` is whether the begin of the first call's tag was read. Raises ``NoCall`` where the first is none.
    """
    end = tags.end if end is None else end
    first = True
    while first or tags.call:
        yield from source.space()
        if tags.call and not opened and not (yield from source.take(tags.call)):
            break
        opened = False
        begin = source.at
        try:
            yield from _read_one(source, calls, tags, end)
        except NoCall:
            if first:
                raise
            source.at = begin
            break
        first = False
    if first:
        raise NoCall
    if end:
        yield from source.space()
        yield from source.take(end)


def _read_one(source: Source, calls: Calls, tags: Tags, end: str) -> Reading[None]:
    name = yield from _called(source, tags)
    yield from source.space()
    follows = yield from source.starts(*filter(None, (tags.key, tags.call_end, end)))
    if not follows:
        letter = yield from source.peek()
        if letter == "{":  # the arguments are JSON after all
            yield from read_arguments(source, calls, name)
            yield from source.space()
            yield from source.take(tags.call_end)
            return
        if letter or not calls.offered(name):
            raise NoCall
    write = calls.begin(name)
    kinds = properties(calls.tools, calls.offered(name) or name)
    begun = False
    while (yield from source.take(tags.key)):
        try:
            key, text = yield from _key(source, tags)
        except NoCall:
            break  # cut off in the middle of a tag, or none: what was read of the call counts
        if not key:
            break
        write((", " if begun else "{") + json.dumps(key, ensure_ascii=False) + ": ")
        begun = True
        kind = frozenset(["string"]) if text == "true" else kinds.get(key)
        yield from _value(source, tags, end, kind, write)
        yield from source.space()
    write("}" if begun else "{}")
    if (yield from source.starts(tags.call_end)):
        source.at += len(tags.call_end)


def _called(source: Source, tags: Tags) -> Reading[str]:
    if not tags.call:
        return (yield from read_name(source))
    attribute, _ = yield from _in_tag(source, ">")
    return attribute


def _key(source: Source, tags: Tags) -> Reading[tuple[str, str]]:
    if not tags.value:
        return (yield from _in_tag(source, tags.key_end))
    found: list[str] = []
    yield from source.until((tags.key_end,), found.append)
    yield from source.space()
    yield from source.take(tags.value)
    return "".join(found).strip(), ""


def _in_tag(source: Source, end: str) -> Reading[tuple[str, str]]:
    """The name in a tag, and whether it says that its value is a string. Raises ``NoCall`` where there is none."""
    found: list[str] = []
    mark = yield from source.until((end, "\n"), found.append)
    match = _ATTRIBUTE.fullmatch("".join(found))
    if match is None or mark != end:
        raise NoCall
    return match[1], match[2] or ""


def _value(
    source: Source, tags: Tags, end: str, kinds: frozenset[str] | None, write: Callable[[str], None]
) -> Reading[None]:
    if (yield from source.take("<![CDATA[")):
        found: list[str] = []
        yield from source.until(("]]>" + tags.value_end, "]]>\n" + tags.value_end), found.append)
        write(_json(read_value("".join(found), kinds)))
        return
    if tags.padded:
        yield from source.take("\n")
    if is_text(kinds):
        write('"')
        text = _Trimmed(lambda piece: write(_json(piece)[1:-1]), trim=tags.padded)
        yield from _text(source, tags, end, text)
        write('"')
    else:
        pieces: list[str] = []
        yield from _text(source, tags, end, _Trimmed(pieces.append, trim=tags.padded))
        write(_json(read_value("".join(pieces), kinds)))


def _text(source: Source, tags: Tags, end: str, text: "_Trimmed") -> Reading[None]:
    """Everything up to the closing tag that counts, or to where it was left out."""
    left_out = ("\n" + tags.key, "\n" + tags.call_end) if tags.padded else ()
    after = tuple(filter(None, (tags.key, tags.call_end, end, tags.call)))
    while True:
        mark = yield from source.until((tags.value_end, *left_out), text.add)
        if mark is None:
            return
        at = source.at
        if mark == tags.value_end:
            yield from source.space()
            if (yield from source.starts(*after)) or source.at == len(source.text):
                source.at = at
                return
        elif mark == "\n" + tags.key:
            source.at -= len(tags.key)
            return
        else:
            yield from source.space()
            if (yield from source.starts(*filter(None, (end, tags.call)))) or source.at == len(source.text):
                source.at = at - len(tags.call_end)
                return
        source.at = at
        text.add(mark)


class _Trimmed:
    """Passes text on without the line break at its end."""

    def __init__(self, write: Callable[[str], None], *, trim: bool) -> None:
        self._write = write
        self._trim = trim
        self._held = ""

    def add(self, text: str) -> None:
        text = self._held + text
        self._held = ""
        if self._trim and text.endswith("\n"):
            text, self._held = text[:-1], "\n"
        if text:
            self._write(text)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
