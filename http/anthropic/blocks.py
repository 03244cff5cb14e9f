"""Anthropic's content blocks, turned into the messages that chat templates know."""

from typing import Any, Literal

import msgspec

from plimsoll.errors import BadRequest
from plimsoll.http.body import check_free, shown


class TextBlock(msgspec.Struct):
    type: str
    text: str | None = None


class Block(msgspec.Struct):
    """Any kind of block: which fields it has depends on ``type``."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None


class Message(msgspec.Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


def plain_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """The messages as chat templates read them. Raises ``BadRequest`` for blocks that no template can read."""
    plain: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for index, message in enumerate(messages):
        path = f"messages[{index}].content"
        if isinstance(message.content, str):
            plain.append({"role": message.role, "content": message.content})
        elif message.role == "assistant":
            said = _assistant(message.content, path)
            names |= {call["id"]: call["function"]["name"] for call in said.get("tool_calls", ())}
            plain.append(said)
        else:
            plain += _others(message.role, message.content, path, names)
    return plain


def plain_text(content: str | list[TextBlock], path: str) -> str:
    """The text of blocks that may only be text. Raises ``BadRequest`` for others."""
    if isinstance(content, str):
        return content
    return "\n".join(_text(block, f"{path}[{index}]") for index, block in enumerate(content))


def _assistant(blocks: list[Block], path: str) -> dict[str, Any]:
    texts, thoughts, calls = [], [], []
    for index, block in enumerate(blocks):
        where = f"{path}[{index}]"
        if block.type == "tool_use":
            check_free(block.input, f"{where}.input")
            function = {"name": _needed(block.name, f"{where}.name"), "arguments": block.input or {}}
            calls.append({"id": _needed(block.id, f"{where}.id"), "type": "function", "function": function})
        elif block.type == "thinking":
            thoughts.append(block.thinking or "")
        elif block.type != "redacted_thinking":  # nobody but its maker can read that
            texts.append(_text(block, where))
    plain: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts)}
    if thoughts:
        plain["reasoning_content"] = "\n".join(thoughts)
    if calls:
        plain["tool_calls"] = calls
    return plain


def _others(role: str, blocks: list[Block], path: str, names: dict[str, str]) -> list[dict[str, Any]]:
    """Tool results are messages of their own; the texts between them stay one message each."""
    plain: list[dict[str, Any]] = []
    texts: list[str] = []
    for index, block in enumerate(blocks):
        where = f"{path}[{index}]"
        if block.type == "tool_result" and role == "user":
            if texts:
                plain.append({"role": role, "content": "\n".join(texts)})
                texts = []
            plain.append(_tool_result(block, where, names))
        else:
            texts.append(_text(block, where))
    if texts or not plain:
        plain.append({"role": role, "content": "\n".join(texts)})
    return plain


def _tool_result(block: Block, path: str, names: dict[str, str]) -> dict[str, Any]:
    text = plain_text(block.content or "", f"{path}.content")
    # Templates have no flag for it: the model has to read it.
    content = f"Error: {text}" if block.is_error else text
    call = _needed(block.tool_use_id, f"{path}.tool_use_id")
    name = {"name": names[call]} if call in names else {}
    return {"role": "tool", "tool_call_id": call, **name, "content": content}


def _text(block: Block | TextBlock, path: str) -> str:
    if block.type != "text":
        text = f"{path}.type is {shown(block.type)}, which is not supported here: only text is, and tools"
        raise BadRequest(text, param=f"{path}.type")
    return _needed(block.text, f"{path}.text")


def _needed(value: str | None, path: str) -> str:
    if value is None:
        raise BadRequest(f"{path} is missing, but must be a string", param=path)
    return value
