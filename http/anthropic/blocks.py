"""Anthropic's content blocks, turned into the messages that chat templates know."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from plimsoll.errors import BadRequest
from plimsoll.http.body import check_free
from plimsoll.http.content import Part, part_text, text_of

# Claude Code's first block of ``system`` changes with the first message: with it no session could reuse another's
# prompt. It says nothing to a model.
_BILLING = "x-anthropic-billing-header:"
# Claude Code's reminders stand before what its user says, one block each.
_REMINDER, _REMINDER_END = "<system-reminder>", "</system-reminder>"


class Message(msgspec.Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[Part] | None = None


def plain_messages(messages: list[Message], told: Mapping[str, str]) -> list[dict[str, Any]]:
    """The messages as chat templates read them; ``told`` is what the model reads where a tool is referenced.

    System messages before the assistant's first are moved to the front: they hold for the whole conversation, and
    behind the user's own text no other session could reuse them. For the same reason the first message's reminders are
    read in another order, see ``_state_last``. Raises ``BadRequest`` for blocks that are not whole.
    """
    system: list[dict[str, Any]] = []
    plain: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    answered = _answered(messages)
    begun = False
    for index, message in enumerate(messages):
        path = f"messages[{index}].content"
        if message.role == "assistant":
            begun = True
            said = _assistant(message.content, path)
            names |= {call["id"]: call["function"]["name"] for call in said.get("tool_calls", ())}
            plain.append(said)
        elif message.role == "system":
            where = plain if begun else system
            where += _others("system", message.content, path, names, told, asked=False)
        else:
            content = message.content if begun else _state_last(message.content)
            plain += _others("user", content, path, names, told, asked=index >= answered)
    return [*system, *plain]


def _state_last(content: str | list[Part] | None) -> str | list[Part] | None:
    """The content with the first of the reminders at its beginning behind the others.

    Claude Code's first reminder has the state of the repository, which differs between sessions; the reminders behind
    it do not, and so they can be reused.
    """
    if not isinstance(content, list):
        return content
    count = next((index for index, block in enumerate(content) if not _is_reminder(block)), len(content))
    return [*content[1:count], *content[:1], *content[count:]] if count > 1 else content


def _is_reminder(block: Part) -> bool:
    text = (block.text or "").strip() if block.type == "text" else ""
    return text.startswith(_REMINDER) and text.endswith(_REMINDER_END)


def system_text(content: str | list[Part] | None) -> str:
    """The text of ``system`` without the line that Claude Code's own server bills by. Raises ``BadRequest``."""
    if isinstance(content, list):
        content = [block for block in content if not (block.text or "").startswith(_BILLING)]
    return text_of(content, "system")


def references(messages: list[Message]) -> list[str]:
    """The names of the tools that messages refer to, in order: from there on they can be called."""
    found: dict[str, None] = {}
    for message in messages:
        for block in message.content if isinstance(message.content, list) else ():
            inner = block.content if isinstance(block.content, list) else []
            for one in (block, *inner):
                if name := _referred(one):
                    found[name] = None
    return list(found)


def definitions(messages: list[Message]) -> list[Any]:
    """The tools that ``tool_addition`` blocks define in the middle of the conversation, as they were sent."""
    blocks = [block for one in messages if isinstance(one.content, list) for block in one.content]
    added = [block.tool for block in blocks if block.type == "tool_addition" and isinstance(block.tool, dict)]
    return [tool["definition"] for tool in added if tool.get("type") == "tool_definition" and "definition" in tool]


def _referred(block: Any) -> str | None:
    """The name of the tool that a block refers to, decoded or as plain JSON; None for other blocks."""
    if isinstance(block, Part):
        kind, name, tool = block.type, block.tool_name or block.name, block.tool
    elif isinstance(block, dict):
        kind, name, tool = block.get("type"), block.get("tool_name") or block.get("name"), block.get("tool")
    else:
        return None
    if kind == "tool_addition" and isinstance(tool, dict):
        definition = tool.get("definition")
        name = definition.get("name") if isinstance(definition, dict) else tool.get("name")
    return name if kind in ("tool_reference", "tool_addition") and isinstance(name, str) else None


def _answered(messages: list[Message]) -> int:
    """How many messages stand up to the assistant's last one."""
    return max((index + 1 for index, one in enumerate(messages) if one.role == "assistant"), default=0)


def _assistant(content: str | list[Part] | None, path: str) -> dict[str, Any]:
    if not isinstance(content, list):
        return {"role": "assistant", "content": content or ""}
    texts, thoughts, calls = [], [], []
    for index, block in enumerate(content):
        where = f"{path}[{index}]"
        if block.type == "tool_use":
            check_free(block.input, f"{where}.input")
            function = {"name": _needed(block.name, f"{where}.name"), "arguments": block.input or {}}
            calls.append({"id": _needed(block.id, f"{where}.id"), "type": "function", "function": function})
        elif block.type == "thinking":
            thoughts.append(block.thinking if isinstance(block.thinking, str) else "")
        elif (text := part_text(block, where)) is not None:
            texts.append(text)
    plain: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts)}
    if any(thoughts):
        plain["reasoning_content"] = "\n".join(thoughts)
    if calls:
        plain["tool_calls"] = calls
    return plain


def _others(
    role: str,
    content: str | list[Part] | None,
    path: str,
    names: Mapping[str, str],
    told: Mapping[str, str],
    *,
    asked: bool,
) -> list[dict[str, Any]]:
    """Tool results are messages of their own; the texts between them stay one message each."""
    if not isinstance(content, list):
        return [{"role": role, "content": content or ""}]
    plain: list[dict[str, Any]] = []
    texts: list[str] = []
    for index, block in enumerate(content):
        where = f"{path}[{index}]"
        if block.type == "tool_result" and role == "user":
            if texts:
                plain.append({"role": role, "content": "\n".join(texts)})
                texts = []
            plain.append(_tool_result(block, where, names, told))
        elif (text := _said(block, where, told, asked=asked)) is not None:
            texts.append(text)
    if texts or not plain:
        plain.append({"role": role, "content": "\n".join(texts)})
    return plain


def _said(block: Part, path: str, told: Mapping[str, str], *, asked: bool = False) -> str | None:
    if name := _referred(block):
        return told.get(name, f"[The tool {name} can be called from now on.]")
    if block.type == "tool_removal":
        name = block.tool.get("name") if isinstance(block.tool, dict) else None
        return f"[The tool {name or ''} can't be called any more.]"
    return part_text(block, path, asked=asked)


def _tool_result(block: Part, path: str, names: Mapping[str, str], told: Mapping[str, str]) -> dict[str, Any]:
    inner = block.content
    if isinstance(inner, list):
        parts = _parts(inner, f"{path}.content")
        texts = [_said(part, f"{path}.content[{index}]", told) for index, part in enumerate(parts)]
        text = "\n".join(one for one in texts if one is not None)
    else:
        text = part_text(Part("tool_result", content=inner), path) or ""
    call = _needed(block.tool_use_id, f"{path}.tool_use_id")
    name = {"name": names[call]} if call in names else {}
    # Templates have no flag for an error: the model has to read it.
    return {"role": "tool", "tool_call_id": call, **name, "content": f"Error: {text}" if block.is_error else text}


def _parts(content: list[Any], path: str) -> list[Part]:
    try:
        return msgspec.convert(content, list[Part])
    except (msgspec.ValidationError, RecursionError) as error:
        raise BadRequest(f"{path} must be a list of content blocks: {error}", param=path) from None


def _needed(value: str | None, path: str) -> str:
    if value is None:
        raise BadRequest(f"{path} is missing, but must be a string", param=path)
    return value
