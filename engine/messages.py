"""Chat messages in the shape that templates read."""

import json
from typing import Any

from plimsoll.engine.protocol import Tool
from plimsoll.engine.tool_calls import json_format, openai_tools
from plimsoll.errors import BadRequest

_FORMAT = json_format(())

_NO_CALL = (
    'a message has tool_calls without a function; each is {"type": "function", "function": {"name": ..., '
    '"arguments": ...}}.'
)

# The words of the template that taught most models to call tools.
_INSTRUCTION = """You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a JSON object with the function's name and arguments within {start}{end} XML tags:
{start}
{{"name": "<function-name>", "arguments": {{<arguments as a JSON object>}}}}
{end}"""


def plain(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same messages, the content of each as one string and the arguments of each call as an object.

    Raises ``BadRequest`` for what is no message or no text.
    """
    if not messages:
        raise BadRequest("messages is empty; send at least one message.", param="messages")
    return [_plain(message) for message in messages]


def with_tools_described(messages: list[dict[str, Any]], tools: tuple[Tool, ...]) -> list[dict[str, Any]]:
    """For templates that know no tools: described in the system message, calls and results as text of the roles.

    Results of calls in a row become one message, for many templates want the roles to take turns.
    """
    told: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            if told and "results" in told[-1]:
                told[-1]["results"].append(text)
            else:
                told.append({"role": "user", "results": [text]})
        elif calls := message.get("tool_calls"):
            texts = [message["content"], *(_call_text(call) for call in calls)]
            told.append({"role": message["role"], "content": "\n".join(filter(None, texts))})
        else:
            told.append(message)
    told = [{"role": "user", "content": "\n".join(one["results"])} if "results" in one else one for one in told]
    if not tools:
        return told
    described = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in openai_tools(tools))
    text = _INSTRUCTION.format(tools=described, start=_FORMAT.start, end=_FORMAT.end)
    if told[0]["role"] == "system":
        return [{**told[0], "content": f"{told[0]['content']}\n\n{text}"}, *told[1:]]
    return [{"role": "system", "content": text}, *told]


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(message.get("role"), str):
        raise BadRequest("every message needs a role, such as user or assistant.", param="messages")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_part(part) for part in content)
    elif content is None:
        content = ""
    elif not isinstance(content, str):
        raise BadRequest(
            f"content is a {type(content).__name__}; it must be a string or a list of text parts.", param="messages"
        )
    result = {**message, "content": content}
    if calls := message.get("tool_calls"):
        result["tool_calls"] = [_call(call) for call in calls] if isinstance(calls, list) else [_call(calls)]
    else:
        result.pop("tool_calls", None)  # a null would make templates that only ask for the key take it for calls
    return result


def _part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind != "text":
        raise BadRequest(
            f"a message has a part of type {kind}; this model reads text only. Send parts of type text.",
            param="messages",
        )
    if not isinstance(text := part.get("text"), str):
        raise BadRequest("a text part has no text; its key text must be a string.", param="messages")
    return text


def _call(call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRequest(_NO_CALL, param="messages")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            # What an earlier answer wrote and nobody could read: the template may still show it.
            arguments = function["arguments"]
    return {**call, "function": {**function, "arguments": arguments}}


def _call_text(call: dict[str, Any]) -> str:
    function = call["function"]
    text = json.dumps({"name": function["name"], "arguments": function["arguments"]}, ensure_ascii=False)
    return f"{_FORMAT.start}\n{text}\n{_FORMAT.end}"
