"""Calls without marks: an answer, or a fenced block, that is nothing but JSON that calls an offered tool."""

import re
from typing import TYPE_CHECKING

from plimsoll.engine.dialect.calls.json_calls import read_json_calls
from plimsoll.engine.dialect.calls.marks import MARKS
from plimsoll.engine.dialect.calls.named_calls import read_arguments, read_name
from plimsoll.engine.dialect.calls.pythonic_calls import read_pythonic
from plimsoll.engine.dialect.calls.writing import Calls, NoCall
from plimsoll.engine.dialect.template_source import Reading, Source

if TYPE_CHECKING:
    from plimsoll.engine.dialect.answer_reader import AnswerReader

_LANGUAGE = re.compile(r"[\w.+-]*")


def read_bare(reader: "AnswerReader") -> Reading[None]:
    """Read what follows as calls where it is nothing else; nothing is read where it is not."""
    source, calls = reader.source, reader.calls
    begin = source.at
    source.kept += 1
    yield from source.space()
    letter = yield from source.peek()
    if letter.isalpha():
        at = source.at
        yield from _read_named(reader)
        begin = source.at if source.at > at else begin
    elif letter and letter in "{[" and not (yield from source.starts("[TOOL_CALLS]", "[THINK]")):
        early = reader.plan.bare_native and letter == "{"
        if early:
            calls.only_offered = True
        else:
            calls.hold()
        before = calls.count
        try:
            yield from _read_calls(source, calls)
            yield from source.space(";,")
            whole = source.at == len(source.text)
        except NoCall:
            whole = False
        calls.release(wanted=whole)
        if whole or calls.count > before:
            begin = source.at
            reader.skip()
            reader.ended = reader.ended or calls.full
    source.at = begin
    source.kept -= 1


def _read_named(reader: "AnswerReader") -> Reading[None]:
    """The name of a tool on a line of its own, and JSON: GLM 4. Nothing is read where anything else stands there."""
    source, calls = reader.source, reader.calls
    begin = source.at
    calls.hold()
    try:
        while (yield from source.has(1)):
            yield from _read_line_and_object(source, calls)
            yield from source.space()
    except NoCall:
        source.at = begin
    calls.release(wanted=source.at > begin)
    if source.at > begin:
        reader.skip()
        reader.ended = reader.ended or calls.full


def _read_line_and_object(source: Source, calls: Calls) -> Reading[None]:
    name = yield from read_name(source)
    if not calls.offered(name) or (yield from source.peek()) != "\n":
        raise NoCall
    yield from source.space()
    if (yield from source.peek()) != "{":
        raise NoCall
    yield from read_arguments(source, calls, name)


def read_fence(source: Source, calls: Calls) -> Reading[None]:
    """What follows the begin of a fenced block, with its end. Raises ``NoCall`` where it holds anything but calls."""
    begin = source.at
    while True:
        match = _LANGUAGE.match(source.text, begin)
        end = match.end() if match else begin
        if end < len(source.text) or source.ended:
            break
        yield
    source.at = end
    yield from source.space()
    letter = yield from source.peek()
    if letter and letter in "{[":
        yield from read_json_calls(source, calls)
    else:
        mark = yield from source.take("<tool_call>")
        if not mark:
            raise NoCall
        while mark:
            yield from MARKS[mark](source, calls)
            yield from source.space()
            mark = yield from source.take("<tool_call>")
    yield from source.space()
    if not (yield from source.take("```")):
        raise NoCall


def _read_calls(source: Source, calls: Calls) -> Reading[None]:
    begin = source.at
    try:
        yield from read_json_calls(source, calls)
    except NoCall:
        source.at = begin
        if source.text[begin] != "[":
            raise
        yield from read_pythonic(source, calls)
