"""The form in which a model family writes calls, with what stands around names, keys and values."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from plimsoll.engine.dialect.template import as_json

# Stand for what differs from call to call.
NAME, ID, NUMBER, KEY = "\ue000", "\ue001", "\ue002", "\ue003"
_AN_ID = "abcdefgh1"


@dataclass(frozen=True, slots=True)
class Keyed:
    """Arguments one by one: ``first`` KEY ``text_open`` TEXT ``text_close`` ``following`` KEY ``open`` JSON ``close``.

    ``first`` stands before the first key and ``following`` before each later one. With ``quoted`` texts are strings
    of JSON, too. ``empty`` is whether a call may have no arguments.
    """

    first: str
    following: str
    text_open: str
    text_close: str
    open: str
    close: str
    quoted: bool
    empty: bool


@dataclass(frozen=True, slots=True)
class CallForm:
    """``begin`` NAME ``gap`` ARGUMENTS, then ``between`` NAME ``gap`` ARGUMENTS for each further call, then ``end``.

    ``between`` is None where an answer has one call. Without ``keyed`` the arguments are an object of JSON. An answer
    that is no call stands between ``answer_begin`` and ``answer_end``. ``lead`` may stand before everything.
    """

    begin: str
    gap: str
    between: str | None
    end: str
    keyed: Keyed | None = None
    answer_begin: str = ""
    answer_end: str = ""
    lead: str = ""

    def write(self, calls: Sequence[tuple[str, dict[str, Any]]]) -> str:
        """The calls as the family writes them."""
        texts = []
        for index, (name, arguments) in enumerate(calls):
            before = self.begin if index == 0 else self.between or ""
            texts.append(
                _filled(before, name, index) + name + _filled(self.gap, name, index) + self._written(arguments)
            )
        return "".join(texts) + _filled(self.end, calls[-1][0], len(calls))

    def _written(self, arguments: dict[str, Any]) -> str:
        keyed = self.keyed
        if keyed is None:
            return as_json(arguments)
        texts = []
        for index, (key, value) in enumerate(arguments.items()):
            texts.append((keyed.following if index else keyed.first) + key)
            if isinstance(value, str) and not keyed.quoted:
                texts.append(f"{keyed.text_open}{value}{keyed.text_close}".replace(KEY, key))
            else:
                texts.append(f"{keyed.open}{as_json(value)}{keyed.close}".replace(KEY, key))
        return "".join(texts)


HERMES = CallForm(
    '<tool_call>\n{"name": "',
    '", "arguments": ',
    '}\n</tool_call>\n<tool_call>\n{"name": "',
    "}\n</tool_call>",
)
"""What most models have learned, for a template that shows no form."""

HARMONY = CallForm(
    "<|channel|>commentary to=functions.",
    " <|constrain|>json<|message|>",
    None,
    "",
    answer_begin="<|channel|>final <|constrain|>json<|message|>",
    lead="<|start|>assistant",
)
"""gpt-oss: its template tells of calls in another way than the model writes them."""


def text_end(close: str, marks: Iterable[str]) -> str:
    """The mark in ``close`` that ends a text; empty where there is none."""
    tags = [match[0] for match in [re.search(r"<[^<>\s]+>", close)] if match]
    found = [mark for mark in (*tags, *marks) if mark in close]
    return min(found, key=lambda mark: (close.find(mark), -len(mark)), default="")


def _filled(text: str, name: str, index: int) -> str:
    return text.replace(NAME, name).replace(ID, _AN_ID).replace(NUMBER, str(index))
