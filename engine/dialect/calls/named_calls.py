"""Calls as a name that the JSON of its arguments follows: Mistral since 2025, DeepSeek V3 to V3.1, Kimi."""

import re
from dataclasses import dataclass

from plimsoll.engine.dialect.calls.json_calls import read_json_calls
from plimsoll.engine.dialect.calls.writing import Calls, NoCall
from plimsoll.engine.dialect.mending import mend_value
from plimsoll.engine.dialect.template_source import Reading, Source

_NAME = re.compile(r"[\w.\-:/]*")
_ID_BEGIN = re.compile(r"(?:functions?|tools?|call|toolu?|chatcmpl-tool)[._:\-]+")
_ID_END = re.compile(r"[:._\-]\d+")


@dataclass(frozen=True, slots=True)
class Section:
    """Marks around one call, between a name and what follows, and at the end of all calls."""

    opens: str
    middle: str
    closes: str
    end: str


DEEPSEEK = Section("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>")
KIMI = Section("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|tool_calls_section_end|>")


def read_section(source: Source, calls: Calls, section: Section, *, opened: bool = False) -> Reading[None]:
    """Read calls up to the section's end or its first other text; ``opened`` where the first call's mark was read."""
    first = True
    while True:
        yield from source.space()
        if not opened and not (yield from source.take(section.opens)):
            break
        opened = False
        begin = source.at
        try:
            yield from _read_sectioned(source, calls, section)
        except NoCall:
            if first:
                raise
            source.at = begin
            yield from source.until((section.closes, section.end), lambda _: None)
        first = False
    if first:
        raise NoCall
    yield from source.take(section.end)


def _read_sectioned(source: Source, calls: Calls, section: Section) -> Reading[None]:
    name = yield from read_name(source)
    yield from source.space()
    if not (yield from source.take(section.middle)):
        raise NoCall
    yield from source.space()
    if section is DEEPSEEK and (yield from source.peek()) != "{":
        name = yield from read_name(source)  # what stood before was the word function
        yield from source.space()
        if (yield from source.take("```json", "```")):
            yield from source.space()
    if section is KIMI:
        name = _name_in_id(name, calls)
    yield from read_arguments(source, calls, name)
    yield from source.space()
    if (yield from source.take("```")):
        yield from source.space()
    yield from source.take(section.closes)


def _name_in_id(ident: str, calls: Calls) -> str:
    """The tool that an id stands for: ``functions.NAME:NUMBER``, or one that imitates what clients call theirs."""
    begin = match.end() if (match := _ID_BEGIN.match(ident)) else 0
    ends = [match.start() for match in _ID_END.finditer(ident) if match.end() == len(ident)]
    named = [ident[first:last] for first in (0, begin) for last in (len(ident), *ends)]
    return next((name for name in named if calls.offered(name)), named[-1])


def read_mistral(source: Source, calls: Calls) -> Reading[None]:
    """What follows [TOOL_CALLS]: a list of JSON, or NAME [CALL_ID] ID [ARGS] JSON."""
    yield from source.space()
    if (yield from source.peek()) in ("[", "{"):
        yield from read_json_calls(source, calls)
        return
    name = yield from read_name(source)
    yield from source.space()
    if (yield from source.take("[CALL_ID]")):
        yield from read_name(source)
        yield from source.space()
    found = yield from source.take("[ARGS]")
    yield from source.space()
    if not found and (yield from source.peek()) != "{":
        raise NoCall
    yield from read_arguments(source, calls, name)


def read_name(source: Source) -> Reading[str]:
    """A tool's name, as far as its letters go. Raises ``NoCall`` where none stands there."""
    begin = source.at
    while True:
        match = _NAME.match(source.text, begin)
        end = match.end() if match else begin
        if end < len(source.text) or source.ended:
            break
        yield
    source.at = end
    if end == begin:
        raise NoCall
    return source.text[begin:end]


def read_arguments(source: Source, calls: Calls, name: str) -> Reading[None]:
    """The JSON of an object, passed on while it comes. Raises ``NoCall`` where none begins there."""
    letter = yield from source.peek()
    if letter == "{":
        yield from mend_value(source, calls.begin(name))
    elif not letter:
        calls.whole(name, None)
    else:
        written: list[str] = []
        if letter not in '"n':
            raise NoCall
        yield from mend_value(source, written.append)
        calls.whole(name, "".join(written))
