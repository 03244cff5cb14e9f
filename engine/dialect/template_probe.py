"""Finds out what a template needs: it is given small conversations, and what it refuses or drops is put in another way.

Each question below has its ways in order of preference; the first with which the template shows every text once, and
in order, is kept for the life of the model.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from plimsoll.engine.dialect.conversation import Conversation
from plimsoll.engine.dialect.described import openai_tools
from plimsoll.engine.dialect.needs import LAST_RESORT, Needs
from plimsoll.engine.dialect.plain_messages import plain
from plimsoll.engine.dialect.template import TemplateRefuses
from plimsoll.engine.protocol import Tool

Render = Callable[..., str]
Messages = list[dict[str, Any]]

_TOLD = "QZTOLD"
_TOOL = Tool("qzlook", _TOLD, {"type": "object", "properties": {"qzkey": {"type": "string"}}, "required": ["qzkey"]})
_USER, _ASKED, _MORE = ({"role": "user", "content": f"QZUSER{letter}"} for letter in "ABC")
_SAID, _DONE = ({"role": "assistant", "content": f"QZSAID{letter}"} for letter in "AB")
_SYSTEM, _RULES, _LATER = ({"role": "system", "content": f"QZSYSTEM{letter}"} for letter in "ABC")
_THOUGHT = "QZTHOUGHT"
# What was meant as a structure stands there as Python or JSON writes it.
_WRONG = ("{'qzkey': 'QZVALUE",)
_WRONG_PARTS = (*_WRONG, "'type': 'thinking'", '"type": "thinking"', "'type': 'text'", '"type": "text"')


def _calling(*numbers: int, text: str = "") -> dict[str, Any]:
    calls = [
        {
            "id": f"call_qz{number}",
            "type": "function",
            "function": {
                "name": f"qzlook{number}",
                "arguments": {"qzkey": f"QZVALUE{number}", "qzlist": [{"qzin": 1}]},
            },
        }
        for number in numbers
    ]
    return {"role": "assistant", "content": text, "tool_calls": calls}


def _result(number: int) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call_qz{number}", "content": f"QZRESULT{number}"}


class Probe:
    """Asks one template; ``form`` is how calls are written where they have to be text."""

    def __init__(self, render: Render, form: str = "") -> None:
        self._render = render
        self._form = form
        self._needs = Needs()

    def needs(self) -> Needs:
        """What the template needs; the last resort where it takes not even a user's message in any way."""
        simplest = [
            {"content": content, "tools": tools} for tools in ("own", "functions") for content in ("text", "parts")
        ]
        if not self._first(simplest, [[_USER]]):
            return LAST_RESORT
        self._first([{"turns": "own"}, {"turns": "merged"}], [[_USER, _ASKED], [_USER, _SAID, _DONE, _MORE]])
        self._first([{"system": "own"}, {"system": "user"}], [[_SYSTEM, _USER]])
        self._first([{"leading": "own"}, {"leading": "merged"}], [[_SYSTEM, _RULES, _USER]])
        late = [[_SYSTEM, _USER, _SAID, _LATER, _MORE], [_SYSTEM, _USER, _LATER], [_USER, _SAID, _LATER, _ASKED]]
        self._first([{"late": "own"}, {"late": "user"}], late)
        self._first([{"opening": "own"}, {"opening": "user"}], [[_SAID, _USER]])
        self._tools()
        return self._needs

    def _tools(self) -> None:
        ways = [{"tools": way} for way in ("own", "xml_tools", "functions", "in_system")]
        ways += [{"tools": "own", "alone": "system"}]
        own = self._first(ways, [[_SYSTEM, _USER], [_USER]], _TOOL, told=_TOLD)
        once = [[_SYSTEM, _USER, _calling(1), _result(1)]]
        ways = [
            dict(zip(("calls", "ids", "arguments", "results"), way, strict=True))
            for way in product(
                ("own", "single", "text"), ("own", "letters", "counted"), ("object", "text"), ("own", "named", "user")
            )
        ]
        inside = [{**way, "system": "user"} for way in ways]  # some drop the system message behind results
        if not own or not (self._first(ways, once, _TOOL) or self._first(inside, once, _TOOL)):
            self._needs = replace(self._needs, tools="described", calls="text", results="user", bare_history="text")
            self._first([{"turns": "own"}, {"turns": "merged"}], once, _TOOL)
            self._history(_TOOL)
            return
        several = [[_USER, _calling(1, 2), _result(1), _result(2)]]
        self._first([{}, {"calls": "single"}, {"calls": "text"}], several, _TOOL, ordered=False)
        past = [
            [_USER, _calling(1, text="QZTEXT"), _result(1), _DONE, _MORE],
            [_USER, _calling(1, text="QZTEXT"), _result(1)],
        ]
        if self._needs.calls != "text":
            said = [{"said": way} for way in ("own", "split_past", "split", "result")]
            self._first(said, past, _TOOL, ordered=False)
        self._history(_TOOL)
        self._first([{}, {"bare_history": "text"}], [[_USER, _calling(1), _result(1), _DONE, _MORE]])

    def _history(self, tool: Tool) -> None:
        """What follows a result, and thoughts beside it."""
        again = [[_SYSTEM, _USER, _calling(1), _result(1), _MORE]]
        self._first(
            [{}, {"after_result": "answer"}, {"turns": "merged"}, {"turns": "merged", "after_result": "answer"}],
            again,
            tool,
        )
        if not self._thoughts(tool):
            return
        both = {**_calling(1, text="QZTEXT"), "reasoning_content": _THOUGHT}
        self._first([{"joined": False}, {"joined": True}], [[_USER, both, _result(1)]], tool)

    def _thoughts(self, tool: Tool) -> bool:
        """The key with which the template shows thoughts, in the turn that goes on or in one that is over."""
        turns = (
            [_USER, {**_calling(1), "reasoning_content": _THOUGHT}, _result(1)],
            [_USER, {**_SAID, "reasoning_content": _THOUGHT}, _MORE],
        )
        for key in ("reasoning_content", "reasoning", "thinking", "part"):
            trial = replace(self._needs, thoughts=key)
            for turn, offered in ((turns[0], (tool,)), (turns[0], ()), (turns[1], ())):
                if self._shows(trial, turn, offered, (_THOUGHT,)):
                    self._needs = trial
                    return True
        return False

    def _first(
        self,
        ways: Iterable[dict[str, Any]],
        turns: Sequence[Messages],
        *tools: Tool,
        told: str = "",
        ordered: bool = True,
    ) -> bool:
        """Keep the first of ``ways`` that serves all ``turns``; nothing changes where none does."""
        for way in ways:
            trial = replace(self._needs, **way)
            texts = [told] if told else []
            if all(self._shows(trial, turn, tools, [*texts, *_texts(turn)], ordered=ordered) for turn in turns):
                self._needs = trial
                return True
        return False

    def _shows(
        self, needs: Needs, turn: Messages, tools: tuple[Tool, ...], texts: Sequence[str], *, ordered: bool = True
    ) -> bool:
        conversation = Conversation(plain(turn), tools, needs, self._form)
        try:
            prompt = self._render(conversation.messages, **conversation.offer(openai_tools(conversation.tools)))
        except TemplateRefuses:
            return False
        wrong = _WRONG_PARTS if "part" in (needs.thoughts, needs.content[:4]) else _WRONG
        if any(text in prompt for text in wrong) or not all(text in prompt for text in texts):
            return False
        places = [prompt.find(text) for text in texts if text != _TOLD]
        return not ordered or places == sorted(places)


def _texts(turn: Messages) -> list[str]:
    """What has to be seen of a conversation, in order."""
    found: list[str] = []
    for message in turn:
        if message["content"]:
            found.append(message["content"])
        for call in message.get("tool_calls") or []:
            found += [call["function"]["name"], call["function"]["arguments"]["qzkey"]]
    return found
