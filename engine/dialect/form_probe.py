"""Learns a family's form of calls from its own template.

A few conversations with calls are rendered; what stands around names, keys and values is the form. A form counts only
if calls that are written in it come back through the reader of answers.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from plimsoll.engine.dialect.answer_plan import AnswerPlan
from plimsoll.engine.dialect.answer_reader import AnswerReader
from plimsoll.engine.dialect.call_form import HERMES, ID, KEY, NAME, NUMBER, CallForm, Keyed, text_end
from plimsoll.engine.dialect.template import TemplateRefuses
from plimsoll.engine.protocol import Tool

_SAID = "QZSAID"
_NAMES = ("qzfirst", "qzother", "qzthird")
_IDS = ("QzIdAAAA1", "QzIdAAAA2", "QzIdAAAA3")
_ARGUMENTS = {"qza": "QZVALA", "qzb": "QZVALB", "qzc": 57, "qzd": "QZVALD"}
_KINDS = {"qza": "string", "qzb": "string", "qzc": "integer", "qzd": "string", "qze": "object"}
_PARAMETERS = {"type": "object", "properties": {key: {"type": kind} for key, kind in _KINDS.items()}}
TOOLS = tuple(Tool(name, "", _PARAMETERS) for name in _NAMES)
"""The tools of the conversations that are rendered."""

Tell = Callable[[dict[str, Any] | None], str]


class _NoForm(Exception):
    """The template shows no form that a grammar could follow."""


def learn(tell: Tell, plan: AnswerPlan, marks: Iterable[str], ends: Iterable[str]) -> CallForm:
    """The form of a template, or that of Hermes.

    ``tell`` renders a user's message and the given message of the assistant, or begins the answer where there is
    none. ``plan`` is how the model's answers are read, ``marks`` are the vocabulary's tokens that are not cut,
    ``ends`` those that end an answer.
    """
    learner = _Learner(tell, plan, tuple(marks), tuple(ends))
    begin, end = learner.answer()
    for several in (True, False):
        try:
            form = learner.form(several=several)
        except (_NoForm, TemplateRefuses):
            continue
        for shorter in learner.without_marks_behind(form):
            if _comes_back(shorter, plan):
                return replace(shorter, answer_begin=begin, answer_end=end)
    return replace(HERMES, answer_begin=begin, answer_end=end)


class _Learner:
    def __init__(self, tell: Tell, plan: AnswerPlan, marks: tuple[str, ...], ends: tuple[str, ...]) -> None:
        self._tell = tell
        self._plan = plan
        self._marks = marks
        self._ends = tuple(filter(None, ends))
        self._units = re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))) or r"(?!)")
        self._asked = tell(None)
        self._said = tell({"role": "assistant", "content": _SAID})

    def answer(self) -> tuple[str, str]:
        """What stands around an answer that is no call."""
        begin, found, after = self._said.partition(_SAID)
        if not found:
            return "", ""
        begin = self._own(begin[self._shared(begin, self._asked) :], "")
        cuts = [after.find(end) for end in self._ends if end in after]
        end = after[: min(cuts)].strip() if cuts else ""
        told = '{"a": 1}'
        reader = AnswerReader(replace(self._plan, tools=TOOLS, open=False))
        parts = reader.add(begin + told + end)
        parts += reader.finish()
        return (begin, end) if (parts.text.strip(), parts.reasoning) == (told, "") else ("", "")

    def form(self, *, several: bool) -> CallForm:
        """Raises ``_NoForm``, ``TemplateRefuses``."""
        text = self._calls(*([_ARGUMENTS] * (3 if several else 1)))
        names = _places(text, _NAMES if several else _NAMES[:1])
        begin = text[: names[0][0]]
        if found := _object(text, names[0][1], _ARGUMENTS):
            keyed, gap, tails = None, _general(text[names[0][1] : found[0]], 0), [found[1]]
            for index, (_, end) in enumerate(names[1:], 1):
                again = _object(text, end, _ARGUMENTS)
                if again is None:
                    raise _NoForm
                gap = _numbered(gap, _general(text[end : again[0]], index))
                tails.append(again[1])
            cut = 0
        else:
            keyed, gap, last, cut = self._keyed(text, names[0][1])
            tails = [last]
            for _, end in names[1:]:
                tails.append(_places(text[end:], ("QZVALD",))[0][1] + end)
        ends = [*(begin for begin, _ in names[1:]), len(text)]
        rests = [
            _general(text[tail + cut : end], index) for index, (tail, end) in enumerate(zip(tails, ends, strict=True))
        ]
        if keyed is not None:
            rests = [rest.replace("qzd", KEY) if KEY in keyed.text_close else rest for rest in rests]
        between = _numbered(rests[0], rests[1]) if several else None
        return CallForm(_general(begin, 0), gap, between, rests[-1], keyed)

    def without_marks_behind(self, form: CallForm) -> Iterator[CallForm]:
        """The form, and the same without marks at its end, which may begin the result."""
        yield form
        for mark in reversed(list(self._units.finditer(form.end))):
            yield replace(form, end=form.end[: mark.start()].rstrip())

    def _keyed(self, text: str, at: int) -> tuple[Keyed, str, int, int]:
        """The form of the arguments behind ``at``, the gap before them, where the last value ends, and what closes."""
        order = ("qza", "QZVALA", "qzb", "QZVALB", "qzc", "57", "qzd", "QZVALD")
        places = _places(text[at:], order)
        places = [(begin + at, end + at) for begin, end in places]
        between = [text[one[1] : other[0]] for one, other in pairwise(places)]
        text_open, after_text, again, before_number, number_open, after_number, last_open = between
        generals = [value.replace(key, KEY) for value, key in ((after_text, "qza"), (before_number, "qzb"))]
        if again != text_open or last_open != text_open or generals[0] != generals[1]:
            raise _NoForm
        after = text[places[-1][1] :].replace("qzd", KEY)
        close = generals[0][: self._shared(generals[0], after)]
        following = generals[0][len(close) :]
        after_number = after_number.replace("qzc", KEY)
        if not after_number.endswith(following):
            raise _NoForm
        number_close = after_number.removesuffix(following)
        before = text[at : places[0][0]]
        quoted = text_open[-1:] in ("'", '"') and close[:1] == text_open[-1:]
        cut = len(close) + (len("qzd") - 1) * close.count(KEY)
        gap, empty = self._gap(before, close)
        if quoted:
            quote = text_open[-1]
            text_open, number_open = text_open[:-1], number_open.removesuffix(quote)
            number_close = number_close.removeprefix(quote)
            close = close[1:]
        elif not text_end(close, self._marks):
            raise _NoForm
        keyed = Keyed(before[len(gap) :], following, text_open, close, number_open, number_close, quoted, empty)
        return keyed, _general(gap, 0), places[-1][1], cut

    def _gap(self, before: str, close: str) -> tuple[str, bool]:
        """What stands behind the name with and without arguments, and whether a call without any ends as all do."""
        try:
            bare = self._calls({})
        except (_NoForm, TemplateRefuses):
            return before, False
        bare = bare[_places(bare, _NAMES[:1])[0][1] :]
        gap = before[: self._shared(before, bare)]
        tail = self._calls(_ARGUMENTS).rpartition("QZVALD")[2].replace("qzd", KEY)
        return gap, tail == close + bare[len(gap) :]

    def _calls(self, *arguments: dict[str, Any]) -> str:
        """What the template writes for calls with these arguments, without what ends the answer."""
        calls = [
            {"id": ident, "type": "function", "function": {"name": name, "arguments": one}}
            for ident, name, one in zip(_IDS, _NAMES, arguments, strict=False)
        ]
        text = self._tell({"role": "assistant", "content": "", "tool_calls": calls})
        text = self._own(text[self._header(text) :], _NAMES[0])
        last = text.rfind(_NAMES[len(calls) - 1])
        if last < 0:
            raise _NoForm
        last = max(last, text.rfind("QZVALD"))
        cuts = [found for end in self._ends if (found := text.find(end, last)) >= 0]
        if cuts:
            return text[: min(cuts)].rstrip()
        return text.removesuffix(self._said.partition(_SAID)[2]).rstrip()

    def _header(self, text: str) -> int:
        """Where the assistant's own words begin."""
        if text.startswith(self._asked):
            return len(self._asked)
        return max(self._shared(text, self._said.partition(_SAID)[0]), self._shared(text, self._asked))

    def _own(self, text: str, word: str) -> str:
        """The text without thoughts before ``word``."""
        end = self._plan.thoughts.end if self._plan.thoughts else ""
        if end and (found := text.rfind(end, 0, text.find(word) if word else len(text))) >= 0:
            text = text[found + len(end) :]
        return text if self._plan.channels else text.lstrip()

    def _shared(self, one: str, other: str) -> int:
        """How long both begin alike, without cutting a mark of either."""
        length = next(
            (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
        )
        for text in (one, other):
            for mark in self._units.finditer(text):
                if mark.start() < length < mark.end():
                    length = mark.start()
        return length


def _places(text: str, words: Sequence[str]) -> list[tuple[int, int]]:
    """Where the words stand, one behind the other. Raises ``_NoForm``."""
    found, at = [], 0
    for word in words:
        begin = text.find(word, at)
        if begin < 0:
            raise _NoForm
        at = begin + len(word)
        found.append((begin, at))
    return found


def _object(text: str, at: int, wanted: dict[str, Any]) -> tuple[int, int] | None:
    """Where the next object of JSON stands, if it is the wanted one."""
    begin = text.find("{", at)
    while begin >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(text, begin)
        except ValueError:
            value, end = None, begin
        if value == wanted:
            return begin, end
        begin = text.find("{", begin + 1)
    return None


def _general(text: str, index: int) -> str:
    """The text with what stands for this call's name and for ids."""
    text = text.replace(_NAMES[index], NAME)
    for ident in _IDS:
        text = text.replace(ident, ID)
    return text


def _numbered(one: str, other: str) -> str:
    """A text that differs between two calls in a number only. Raises ``_NoForm`` where it differs in more."""
    if one == other:
        return one
    parts, others = (re.split(rf"(\d+|{NUMBER})", text) for text in (one, other))
    if len(parts) != len(others) or parts[::2] != others[::2]:
        raise _NoForm
    return "".join(part if part == again else NUMBER for part, again in zip(parts, others, strict=True))


def _comes_back(form: CallForm, plan: AnswerPlan) -> bool:
    """Whether calls that are written in the form are read as the same calls."""
    whole: dict[str, Any] = {"qza": "a b", "qzc": 5, "qzd": "x\ny", "qze": {"k": [1, "z"]}}
    tries = [[(_NAMES[0], whole)]]
    if form.keyed is None or form.keyed.empty:
        tries.append([(_NAMES[0], {})])
    if form.between is not None:
        tries.append([(_NAMES[1], {"qza": "c"}), (_NAMES[0], whole), (_NAMES[2], {"qzc": 7, "qza": "d"})])
    return all(_read(form.write(calls), plan) == [(name, arguments) for name, arguments in calls] for calls in tries)


def _read(text: str, plan: AnswerPlan) -> list[tuple[str, Any]] | None:
    reader = AnswerReader(replace(plan, tools=TOOLS, open=False))
    parts = reader.add(text)
    parts += reader.finish()
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for index, piece in parts.calls:
        names[index] = names.get(index, "") + piece.name
        arguments[index] = arguments.get(index, "") + piece.arguments
    if parts.text.strip() or parts.reasoning.strip():
        return None
    try:
        return [(names[index], json.loads(arguments[index] or "{}")) for index in sorted(names)]
    except ValueError:
        return None
