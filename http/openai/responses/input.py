"""The input of OpenAI's responses, a list of items, as the messages of a chat."""

from typing import Any, Literal

import msgspec

from plimsoll.http.body import refuse, shown

_ROLES = "system, developer, user or assistant"
_PARTS = ("input_text", "output_text", "text")


class Part(msgspec.Struct):
    type: str
    text: str | None = None


class Item(msgspec.Struct):
    """Any input item; which fields it has depends on its type."""

    type: str = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None


ALLOWED = {
    "input": "a string or a list of one or more items",
    "input[].role": _ROLES,
    "input[].content": "a string or a list of text parts",
    "input[].output": "a string or a list of text parts",
}


def messages(given: str | list[Item], instructions: str | None) -> list[dict[str, Any]]:
    """The messages of a ``ChatRequest``. Raises ``BadRequest`` for items that are not supported or not whole."""
    found: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(given, str):
        return [*found, {"role": "user", "content": given}]
    for index, item in enumerate(given):
        _add(found, item, f"input[{index}]")
    if not found:
        raise refuse("input", "has no message")
    return found


def _add(found: list[dict[str, Any]], item: Item, path: str) -> None:
    if item.type == "message":
        found.append(_message(item, path))
    elif item.type == "function_call":
        _add_call(found, item, path)
    elif item.type == "function_call_output":
        call_id = _required(item.call_id, f"{path}.call_id")
        found.append({"role": "tool", "content": _text(item.output, f"{path}.output"), "tool_call_id": call_id})
    elif item.type == "reasoning":
        pass  # templates leave former thoughts out
    elif item.type == "item_reference":
        raise refuse(f"{path}.type", "is item_reference, but nothing is stored here: send the item itself")
    else:
        known = "message, function_call, function_call_output or reasoning"
        raise refuse(f"{path}.type", f"is {shown(item.type)}, but must be {known}")


def _message(item: Item, path: str) -> dict[str, Any]:
    role = _required(item.role, f"{path}.role")
    # Chat templates know system and not developer, which is OpenAI's newer word for it.
    return {"role": "system" if role == "developer" else role, "content": _text(item.content, f"{path}.content")}


def _add_call(found: list[dict[str, Any]], item: Item, path: str) -> None:
    """Calls belong to the assistant's message before them, which chat templates expect to be one."""
    call = {
        "id": _required(item.call_id, f"{path}.call_id"),
        "type": "function",
        "function": {"name": _required(item.name, f"{path}.name"), "arguments": item.arguments or "{}"},
    }
    if not found or found[-1]["role"] != "assistant":
        found.append({"role": "assistant", "content": ""})
    found[-1].setdefault("tool_calls", []).append(call)


def _text(content: str | list[Part] | None, path: str) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        raise refuse(path, "is missing, but must be a string or a list of text parts")
    for index, part in enumerate(content):
        if part.type not in _PARTS:
            raise refuse(f"{path}[{index}].type", f"is {shown(part.type)}, but only text parts are supported")
        if part.text is None:
            raise refuse(f"{path}[{index}].text", "is missing, but must be a string")
    return "\n".join(part.text or "" for part in content)


def _required(value: str | None, param: str) -> str:
    if value is None:
        raise refuse(param, "is missing, but must be a string" if not param.endswith("role") else f"must be {_ROLES}")
    return value
