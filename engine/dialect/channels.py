"""Answers as messages with headers: gpt-oss (its makers call the format harmony) and Muse.

``<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...``: the header says who is
spoken to (``to=functions.NAME`` calls a tool, ``to=self`` thinks) and on which channel. The prompt ends in the middle
of the first header.
"""

import re
from typing import TYPE_CHECKING

from plimsoll.engine.dialect.calls.marks import MARKS
from plimsoll.engine.dialect.calls.named_calls import read_arguments
from plimsoll.engine.dialect.calls.writing import NoCall
from plimsoll.engine.dialect.template_source import Reading, nothing

if TYPE_CHECKING:
    from plimsoll.engine.dialect.answer_reader import AnswerReader

MESSAGE = "<|message|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|eom|>", "<|eot|>")
_RECIPIENT = re.compile(r"to=([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_TO_ALL = ("user", "all", "commentary")
_MOST_HEADER = 400


def read_channels(reader: "AnswerReader") -> Reading[None]:
    """The whole answer."""
    source = reader.source
    if reader.plan.continued:
        yield from reader.answer(ENDS)
    while not reader.ended:
        text = yield from _header(reader)
        if text is None:
            if _is_header(source.text[source.at : source.at + _MOST_HEADER]):
                return  # cut off in the middle of it
            yield from reader.answer(ENDS)  # text as any model writes it
            if source.at == len(source.text):
                return
            continue
        recipient = match[1] if (match := _RECIPIENT.search(text)) else ""
        channel = match[1] if (match := _CHANNEL.search(text)) else ""
        yield from _body(reader, recipient, channel)
        yield from source.space()
        if source.at == len(source.text):
            return


def _header(reader: "AnswerReader") -> Reading[str | None]:
    """The header of the next message; None where the text is none."""
    source = reader.source
    begin = source.at
    while True:
        end = source.text.find(MESSAGE, begin)
        if 0 <= end <= begin + _MOST_HEADER:
            source.at = end + len(MESSAGE)
            return source.text[begin:end]
        if end >= 0 or source.ended or len(source.text) - begin > _MOST_HEADER + len(MESSAGE):
            return None
        yield


def _is_header(text: str) -> bool:
    return bool(_CHANNEL.search(text) or _RECIPIENT.match(text.strip())) or not text.strip()


def _body(reader: "AnswerReader", recipient: str, channel: str) -> Reading[None]:
    source, calls = reader.source, reader.calls
    tool = recipient.removeprefix("functions.")
    if recipient and recipient not in (*_TO_ALL, "self", "assistant") and calls.tools:
        known = calls.offered(tool)
        begin = source.at
        yield from source.space()
        try:
            if mark := (yield from source.take("<atem:function_calls>")):
                yield from MARKS[mark](source, calls)
            elif known or recipient != tool:
                yield from read_arguments(source, calls, tool)
        except NoCall:
            source.at = begin
            if known:
                written: list[str] = []
                yield from source.until(ENDS, written.append)
                calls.whole(tool, _first_parameter(reader, known, "".join(written).strip()))
                reader.ended = reader.ended or calls.full
                return
        reader.skip()
        reader.ended = reader.ended or calls.full
        yield from source.until(ENDS, nothing)
    elif recipient and recipient not in _TO_ALL and recipient != "self":
        yield from source.until(ENDS, nothing)
    elif channel == "analysis" or recipient == "self":
        yield from reader.think(ENDS)
    else:
        reader.skip()
        yield from reader.answer(ENDS)


def _first_parameter(reader: "AnswerReader", name: str, text: str) -> dict[str, str]:
    """Arguments that are no object, such as code, belong to the only parameter that has to be there."""
    schema = next(tool.parameters for tool in reader.calls.tools if tool.name == name)
    needed = schema.get("required") or list(schema.get("properties") or {})
    return {needed[0]: text} if needed else {}
