"""The input of OpenAI's responses, a list of items, as the messages of a chat."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from plimsoll.http import left_out
from plimsoll.http.body import check_free, refuse
from plimsoll.http.content import Part, part_text, text_of
from plimsoll.http.openai.shell import SHELL, shell_arguments
from plimsoll.http.openai.tools import INPUT, Offered

_ROLES = "system, developer, user or assistant"
_OUTPUTS = ("function_call_output", "custom_tool_call_output", "local_shell_call_output")


class Item(msgspec.Struct, omit_defaults=True):
    """Any input item; which fields it has depends on its type."""

    type: str | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[Part] | None = None
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | dict[str, Any] | None = None
    input: str | None = None
    action: Any = None
    output: Any = None
    summary: list[Part] | None = None


ALLOWED = {
    "input": "a string or a list of one or more items",
    "input[].role": _ROLES,
    "input[].content": "a string or a list of parts",
    "input[].output": "a string or a list of parts",
}


def messages(given: str | Sequence[Item], instructions: str | None, offered: Offered) -> list[dict[str, Any]]:
    """The messages of a ``ChatRequest``. Raises ``BadRequest`` for items that are not whole.

    Items of other types are left out, as are references: whoever refers to an item has it and may send it.
    """
    found: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(given, str):
        return [*found, {"role": "user", "content": given}]
    said = (index + 1 for index, one in enumerate(given) if one.role == "assistant" or one.type in _CALLS)
    answered = max(said, default=0)
    for index, item in enumerate(given):
        _add(found, item, f"input[{index}]", offered, asked=index >= answered)
    _leave_out_lone_thoughts(found)
    if not found:
        raise refuse("input", "has no message")
    return found


def is_begun_answer(message: dict[str, Any]) -> bool:
    """Whether the message is a text of the assistant, which an answer goes on with if it is the last one."""
    return message["role"] == "assistant" and bool(message["content"]) and "tool_calls" not in message


def _add(found: list[dict[str, Any]], item: Item, path: str, offered: Offered, *, asked: bool) -> None:
    kind = item.type or "message"
    if kind == "message":
        _add_message(found, item, path, asked=asked)
    elif kind in _CALLS:
        _add_call(found, item, path, *_CALLS[kind](item, path, offered))
    elif kind in _OUTPUTS:
        call_id = _required(item.call_id or item.id, f"{path}.call_id")
        _leave_out_lone_thoughts(found)
        output = part_text(Part("tool_result", content=item.output), f"{path}.output") or ""
        found.append({"role": "tool", "content": output, "tool_call_id": call_id})
    elif kind == "reasoning":
        if thoughts := _thoughts(item):
            found.append({"role": "assistant", "content": "", "reasoning_content": thoughts})
    else:
        left_out.note("item", kind)


def _add_message(found: list[dict[str, Any]], item: Item, path: str, *, asked: bool) -> None:
    """What the assistant says belongs to the thoughts before it."""
    role = _required(item.role, f"{path}.role")
    content = text_of(item.content, f"{path}.content", asked=asked and role == "user")
    if role == "assistant" and _is_lone_thought(found):
        found[-1]["content"] = content
        return
    _leave_out_lone_thoughts(found)
    # Chat templates know system and not developer, which is OpenAI's newer word for it.
    found.append({"role": "system" if role == "developer" else role, "content": content})


def _thoughts(item: Item) -> str:
    parts = item.content if isinstance(item.content, list) and item.content else item.summary or []
    return "\n".join(part.text for part in parts if part.text)


def _is_lone_thought(found: list[dict[str, Any]]) -> bool:
    last = found[-1] if found else {}
    return bool(last.get("reasoning_content")) and not last["content"] and "tool_calls" not in last


def _leave_out_lone_thoughts(found: list[dict[str, Any]]) -> None:
    """Thoughts that nothing followed were cut off: no template takes them."""
    while _is_lone_thought(found):
        found.pop()


def _add_call(found: list[dict[str, Any]], item: Item, path: str, name: str, arguments: Any) -> None:
    """Calls belong to the assistant's message before them, which chat templates expect to be one."""
    call_id = _required(item.call_id or item.id, f"{path}.call_id")
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    if not found or found[-1]["role"] != "assistant":
        found.append({"role": "assistant", "content": ""})
    found[-1].setdefault("tool_calls", []).append(call)


def _function(item: Item, path: str, offered: Offered) -> tuple[str, Any]:
    check_free(item.arguments, f"{path}.arguments")
    return offered.called(_required(item.name, f"{path}.name"), item.namespace), item.arguments or "{}"


def _custom(item: Item, path: str, offered: Offered) -> tuple[str, Any]:
    return offered.called(_required(item.name, f"{path}.name"), item.namespace), {INPUT: item.input or ""}


def _shell(item: Item, path: str, _offered: Offered) -> tuple[str, Any]:
    check_free(item.action, f"{path}.action")
    return SHELL, shell_arguments(item.action)


# Name and arguments of a call that the client ran, by the item's type.
_CALLS: dict[str, Callable[[Item, str, Offered], tuple[str, Any]]] = {
    "function_call": _function,
    "custom_tool_call": _custom,
    "local_shell_call": _shell,
}


def _required(value: str | None, param: str) -> str:
    if value is None:
        raise refuse(param, "is missing, but must be a string" if not param.endswith("role") else f"must be {_ROLES}")
    return value
