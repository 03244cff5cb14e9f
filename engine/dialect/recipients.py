"""Answers whose parts begin with the name of whom they are for, on a line of its own: Functionary.

``all`` is the user; ``>>>`` stands between two parts.
"""

from typing import TYPE_CHECKING

from plimsoll.engine.dialect.calls.named_calls import read_arguments, read_name
from plimsoll.engine.dialect.calls.writing import NoCall
from plimsoll.engine.dialect.template_source import Reading, nothing

if TYPE_CHECKING:
    from plimsoll.engine.dialect.answer_reader import AnswerReader

NEXT = ">>>"


def read_recipients(reader: "AnswerReader") -> Reading[None]:
    """The whole answer."""
    source, calls = reader.source, reader.calls
    if reader.plan.continued:
        yield from reader.answer((NEXT,))
    while not reader.ended:
        yield from source.take(NEXT)
        begin = source.at
        source.kept += 1
        try:
            name = yield from read_name(source)
            space = yield from source.space()
            if name == "all" and space.startswith("\n"):
                mark = yield from reader.answer((NEXT,))
            elif calls.offered(name) and (yield from source.peek()) == "{":
                yield from read_arguments(source, calls, name)
                reader.ended = reader.ended or calls.full
                mark = yield from source.until((NEXT,), nothing)
            else:
                source.at = begin
                mark = yield from reader.answer((NEXT,))
        except NoCall:
            source.at = begin
            mark = yield from reader.answer((NEXT,))
        source.kept -= 1
        if mark is None:
            return
