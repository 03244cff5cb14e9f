"""What a conversation tells of earlier calls, their results and the thoughts beside them, as a template takes it."""

import hashlib
import re
from collections.abc import Callable
from typing import Any

from plimsoll.engine.dialect.described import calls_text, result_text
from plimsoll.engine.dialect.needs import Needs
from plimsoll.engine.dialect.template import as_json

Messages = list[dict[str, Any]]
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_NINE = re.compile(r"[a-zA-Z0-9]{9}")


def joined(texts: Any) -> str:
    """The texts that are not empty, with an empty line between two."""
    return "\n\n".join(filter(None, texts))


class History:
    """``form`` is the mark of the family's calls where they have to be text; ``note`` is told of every change."""

    def __init__(self, needs: Needs, form: str, note: Callable[[str], None]) -> None:
        self._needs = needs
        self._form = form
        self._note = note

    def tell(self, messages: Messages) -> Messages:
        """The messages with calls, results and thoughts as the template needs them."""
        told = self._ids(self._results_in_order(messages))
        return self._results(self._thoughts(self._calls(told)))

    def _results_in_order(self, messages: Messages) -> Messages:
        """Results stand in the order of their calls, for many templates show no ids."""
        told: Messages = []
        for message in messages:
            told.append(message)
        index = 0
        while index < len(told):
            order = [call["id"] for call in told[index].get("tool_calls") or []]
            end = index + 1
            while end < len(told) and told[end]["role"] == "tool":
                end += 1
            results = told[index + 1 : end]
            if order and len(results) > 1 and all(one.get("tool_call_id") in order for one in results):
                told[index + 1 : end] = sorted(results, key=lambda one: order.index(one["tool_call_id"]))
            index = max(end, index + 1)
        return told

    def _ids(self, messages: Messages) -> Messages:
        """A result whose id no call has answers the first call without a result; ids get the template's form."""
        told, number = [], 0
        open_: list[dict[str, Any]] = []
        given: dict[str, str] = {}
        for message in messages:
            if calls := message.get("tool_calls"):
                renamed = []
                for call in calls:
                    given[call["id"]] = self._id(call, number)
                    number += 1
                    renamed.append({**call, "id": given[call["id"]], "was": call["id"]})
                open_ = list(renamed)
                told.append({**message, "tool_calls": renamed})
            elif message["role"] == "tool":
                told.append(self._answer_of(message, open_, given))
            else:
                told.append(message)
        return [_without_was(message) for message in told]

    def _answer_of(self, message: dict[str, Any], open_: list[dict[str, Any]], given: dict[str, str]) -> dict[str, Any]:
        """A result with the id that its call has now; ``open_`` are the calls without one."""
        answered = message.get("tool_call_id")
        call = next((one for one in open_ if one["was"] == answered), None)
        if call is None and answered not in given and open_:
            call = open_[0]
            self._note("a result whose id no call has was given to the first call without one")
        if call is not None:
            open_.remove(call)
            return {**message, "tool_call_id": call["id"], "called": call["function"]["name"]}
        return {**message, "tool_call_id": given[answered]} if answered in given else message

    def _id(self, call: dict[str, Any], number: int) -> str:
        given = str(call["id"])
        if self._needs.ids == "letters" and not _NINE.fullmatch(given):
            self._note("ids of calls became nine letters and digits, because the template takes no others")
            digest = hashlib.sha256(given.encode()).digest()
            return "".join(_LETTERS[byte % len(_LETTERS)] for byte in digest[:9])
        name = call["function"]["name"]
        if self._needs.ids == "counted" and not re.fullmatch(rf"functions\.{re.escape(name)}:\d+", given):
            self._note("ids of calls became functions.NAME:NUMBER, because the template shows them for the names")
            return f"functions.{name}:{number}"
        return given

    def _calls(self, messages: Messages) -> Messages:
        needs, told = self._needs, []
        held = ""  # text that is told with the next result
        for index, message in enumerate(messages):
            if message["role"] == "tool":
                before = f"(Before this call the assistant said: {held})\n" if held else ""
                told.append({**message, "content": before + message["content"]})
                held = ""
                continue
            held = ""
            if not (calls := message.get("tool_calls")):
                told.append(message)
                continue
            text, rest = message["content"], {key: message[key] for key in message if key != "tool_calls"}
            if needs.calls == "text":
                self._note("calls and results are text, because the template does not tell of these")
                told.append({**rest, "content": "\n".join(filter(None, [text, calls_text(calls, self._form)]))})
                continue
            split = needs.said == "split" or (needs.said == "split_past" and _answered(messages, index))
            if text.strip() and split:
                self._note("text beside calls became a message of its own, because the template drops it there")
                told.append({"role": "assistant", "content": text, "apart": True})
                rest["content"] = ""
            elif text.strip() and needs.said == "result":
                self._note("text beside calls is told with the result, because the template takes it nowhere else")
                rest["content"], held = "", text
            if rest["content"].strip() and rest.get("reasoning_content") and needs.joined:
                self._note("thoughts and text beside calls became one text, because the template takes one of them")
                rest["content"] = joined([rest.pop("reasoning_content"), rest["content"]])
            calls = [self._written(call) for call in calls]
            told.append({**rest, "tool_calls": calls})
        return self._single(told) if needs.calls == "single" else told

    def _written(self, call: dict[str, Any]) -> dict[str, Any]:
        arguments = call["function"]["arguments"]
        if self._needs.arguments == "text":
            arguments = as_json(arguments)
        return {**call, "function": {**call["function"], "arguments": arguments}}

    def _single(self, messages: Messages) -> Messages:
        """One call in a message, its result right behind it."""
        told: Messages = []
        waiting: Messages = []  # messages with the further calls
        for message in messages:
            calls = message.get("tool_calls") or []
            if message["role"] != "tool":
                told += waiting
                waiting = []
            if len(calls) > 1:
                self._note("calls made together became one after the other, because the template takes one at a time")
                told.append({**message, "tool_calls": calls[:1]})
                waiting = [{"role": "assistant", "content": "", "tool_calls": [call]} for call in calls[1:]]
                continue
            if message["role"] == "tool" and waiting:
                asked = next(
                    (one for one in waiting if one["tool_calls"][0]["id"] == message.get("tool_call_id")), None
                )
                if asked is not None:
                    before = waiting.index(asked)
                    told += waiting[: before + 1]
                    waiting = waiting[before + 1 :]
            told.append(message)
        return told + waiting

    def _thoughts(self, messages: Messages) -> Messages:
        key = self._needs.thoughts
        if key == "reasoning_content":
            return messages
        return [self._thinking(message, key) if message.get("reasoning_content") else message for message in messages]

    def _thinking(self, message: dict[str, Any], key: str) -> dict[str, Any]:
        thoughts = message["reasoning_content"]
        told = {name: message[name] for name in message if name != "reasoning_content"}
        if key == "part":
            parts = [{"type": "thinking", "thinking": thoughts}, {"type": "text", "text": told["content"]}]
            return {**told, "content": parts if told["content"] else parts[:1]}
        if not key:
            self._note("earlier thoughts were left out, because the template takes none")
        return {**told, key: thoughts} if key else told

    def _results(self, messages: Messages) -> Messages:
        told: Messages = []
        for message in messages:
            if message["role"] != "tool":
                told.append(message)
                continue
            result = {key: message[key] for key in message if key != "called"}
            if self._needs.results != "user":
                named = self._needs.results == "named" and "called" in message and not result.get("name")
                told.append({**result, "name": message["called"]} if named else result)
            elif told and "results" in told[-1]:
                told[-1]["results"].append(result_text(result["content"]))
            else:
                told.append({"role": "user", "results": [result_text(result["content"])]})
        return [{"role": "user", "content": "\n".join(one["results"])} if "results" in one else one for one in told]


def _without_was(message: dict[str, Any]) -> dict[str, Any]:
    if not (calls := message.get("tool_calls")):
        return message
    return {**message, "tool_calls": [{key: call[key] for key in call if key != "was"} for call in calls]}


def _answered(messages: Messages, index: int) -> bool:
    """Whether an answer without calls follows: the turn of this message is over."""
    return any(one["role"] == "assistant" and not one.get("tool_calls") for one in messages[index + 1 :])
