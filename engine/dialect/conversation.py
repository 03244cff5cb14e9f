"""From a client's messages to the ones that a template takes: nothing but what it needs is changed, nothing is lost.

What is done to a message depends on the messages before it, and on the results of its own calls, but on no later
turn: so what was computed of a conversation serves its next turn.
"""

import time
from dataclasses import replace
from typing import Any

from plimsoll.engine.dialect.call_history import History, Messages, joined
from plimsoll.engine.dialect.described import instruction, openai_tools
from plimsoll.engine.dialect.needs import Needs
from plimsoll.engine.dialect.template import as_json
from plimsoll.engine.protocol import Tool


class Conversation:
    """The messages of one request, and in ``changes`` what was done to them and why, in words."""

    def __init__(self, messages: Messages, tools: tuple[Tool, ...], needs: Needs, form: str = "") -> None:
        self.changes: list[str] = []
        described = needs.tools == "described"
        if described or (not tools and needs.bare_history == "text"):
            needs = replace(needs, calls="text", results="user" if described else needs.results)
        self._needs = needs
        self._form = "" if described else form
        self.tools = () if described else tools
        told = [dict(message) for message in messages]
        told = self._system(told, instruction(tools) if described and tools else "")
        told = History(needs, self._form, self._note).tell(told)
        told = self._roles(told)
        self.messages = self._shape(told)
        if needs.tools == "in_system" and tools:
            if self.messages[0]["role"] != "system":
                self.messages.insert(0, {"role": "system", "content": ""})
            functions = [one["function"] for one in openai_tools(tools)]
            self.messages[0] = {**self.messages[0], "tools": as_json(functions)}

    def offer(self, tools: list[dict[str, Any]]) -> dict[str, Any]:
        """The template's arguments that tell it of ``tools``, which are this conversation's in some form."""
        way = self._needs.tools
        if way == "functions":
            told = [one["function"] for one in tools]
            return {"functions": as_json(told), "datetime": time.strftime("%Y-%m-%d")}
        if not tools or way in ("described", "in_system"):
            return {}
        if way == "xml_tools":
            return {way: [one["function"] for one in tools]}
        return {"tools": tools}

    def _note(self, change: str) -> None:
        if change not in self.changes:
            self.changes.append(change)

    # ---- what the system says

    def _system(self, messages: Messages, told_of_tools: str) -> Messages:
        count = next((index for index, one in enumerate(messages) if not _is_system(one)), len(messages))
        leading, rest = messages[:count], messages[count:]
        if count > 1 and (self._needs.leading == "merged" or self._needs.system == "user" or told_of_tools):
            self._note(f"the {count} leading system messages were made one, because the template takes one")
            leading = [{"role": "system", "content": joined(one["content"] for one in leading)}]
        if told_of_tools:
            self._note("the tools are described in the system message, because the template does not tell of these")
            text = joined([leading[0]["content"] if leading else "", told_of_tools])
            leading = [{"role": "system", "content": text}]
        if not leading and self.tools and self._needs.alone == "system":
            self._note("a plain system message was added, because the template tells of tools only beside one")
            leading = [{"role": "system", "content": "You are a helpful assistant."}]
        if self._needs.late == "user":
            rest = [self._late(one) if _is_system(one) else one for one in rest]
        if leading and self._needs.system == "user":
            self._note("the system message stands in the first user message, because the template takes none")
            text = joined(one["content"] for one in leading)
            first = next((index for index, one in enumerate(rest) if one["role"] == "user"), None)
            if first is None or first > 0:
                return [{"role": "user", "content": text}, *rest]
            rest[0] = {**rest[0], "content": joined([text, rest[0]["content"]])}
            return rest
        return [*leading, *rest]

    def _late(self, message: dict[str, Any]) -> dict[str, Any]:
        self._note("a later system message became a marked user message, because the template takes one at the begin")
        return {"role": "user", "content": f"<system>\n{message['content']}\n</system>"}

    # ---- whose turn it is

    def _roles(self, messages: Messages) -> Messages:
        told: Messages = []
        for message in messages:
            last = told[-1] if told else None
            if last is None or last["role"] == "system":
                if message["role"] == "assistant" and self._needs.opening == "user":
                    self._note("a user message was put before the first one, because the template begins with one")
                    told.append({"role": "user", "content": "(The assistant begins.)"})
            elif last["role"] == "tool" and message["role"] == "user" and self._needs.after_result == "answer":
                self._note("an answer was put between a result and the user, because the template wants one there")
                told.append({"role": "assistant", "content": "OK."})
            elif (
                self._needs.turns == "merged"
                and last["role"] == message["role"] != "tool"
                and _mergeable(last, message)
            ):
                self._note("neighbours of one role were made one message, because roles take turns in the template")
                told[-1] = _merged(last, message)
                continue
            told.append(message)
        return told

    def _shape(self, messages: Messages) -> Messages:
        messages = [{key: one[key] for key in one if key != "apart"} for one in messages]
        if self._needs.content == "text":
            return messages
        return [
            {**one, "content": [{"type": "text", "text": one["content"]}]} if isinstance(one["content"], str) else one
            for one in messages
        ]


def _is_system(message: dict[str, Any]) -> bool:
    return message["role"] in ("system", "developer")


def _mergeable(one: dict[str, Any], other: dict[str, Any]) -> bool:
    if (
        one.get("apart")
        or one.get("tool_calls")
        or not (isinstance(one["content"], str) and isinstance(other["content"], str))
    ):
        return False
    return not other.get("tool_calls") or one["role"] == "assistant"


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    merged = {**one, **other, "content": joined([one["content"], other["content"]])}
    for key in ("reasoning_content", "reasoning", "thinking"):
        if one.get(key) and other.get(key):
            merged[key] = joined([one[key], other[key]])
    return merged
