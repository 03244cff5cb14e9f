"""A client's messages, checked, in the one shape from which all others are made."""

import json
from typing import Any

from plimsoll.errors import BadRequest

_NO_CALL = (
    'a message has tool_calls without a function; each is {"type": "function", "function": {"name": ..., '
    '"arguments": ...}}.'
)
THOUGHTS = ("reasoning_content", "reasoning", "thinking")


def plain(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same messages, the content of each as one string and the arguments of each call as an object.

    Thoughts are under ``reasoning_content``. Arguments that nobody could read are ``{"_raw": TEXT}``.
    Raises ``BadRequest`` for what is no message or no text.
    """
    if not messages:
        raise BadRequest("messages is empty; send at least one message.", param="messages")
    return [_plain(message) for message in messages]


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
    result = {key: value for key, value in message.items() if key not in THOUGHTS} | {"content": content}
    if thoughts := next((message[key] for key in THOUGHTS if isinstance(message.get(key), str) and message[key]), ""):
        result["reasoning_content"] = thoughts
    if calls := message.get("tool_calls"):
        listed = calls if isinstance(calls, list) else [calls]
        result["tool_calls"] = [_call(call, index) for index, call in enumerate(listed)]
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


def _call(call: Any, index: int) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRequest(_NO_CALL, param="messages")
    arguments = function.get("arguments")
    name = call.get("id")
    return {
        **call,
        "id": name if isinstance(name, str) and name else f"call_{index}",
        "type": "function",
        "function": {**function, "arguments": _object(arguments)},
    }


def _object(arguments: Any) -> dict[str, Any]:
    """An object of arguments: what an earlier answer wrote and nobody could read is kept as text."""
    if isinstance(arguments, str):
        if not arguments.strip():
            return {}
        try:
            found = json.loads(arguments)
        except (ValueError, RecursionError):
            return {"_raw": arguments}
        return found if isinstance(found, dict) else {} if found is None else {"_raw": arguments}
    if arguments is None:
        return {}
    return arguments if isinstance(arguments, dict) else {"_raw": json.dumps(arguments, ensure_ascii=False)}
