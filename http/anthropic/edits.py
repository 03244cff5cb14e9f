"""Anthropic's edits of a conversation before it is read (``context_management``)."""

from typing import Any, Literal

import msgspec

from plimsoll.http.body import refuse, shown


class ThinkingTurns(msgspec.Struct):
    type: Literal["thinking_turns"]
    value: int


class Edit(msgspec.Struct):
    type: str
    keep: Any = None


class ContextManagement(msgspec.Struct):
    edits: list[Edit] | None = None


def without_cleared_thoughts(
    messages: list[dict[str, Any]], management: ContextManagement | None
) -> list[dict[str, Any]]:
    """The messages without the thoughts that an edit clears. Raises ``BadRequest`` for other edits, by name."""
    for index, edit in enumerate((management.edits if management else None) or ()):
        path = f"context_management.edits[{index}]"
        if not edit.type.startswith("clear_thinking_"):
            known = 'only edits like {"type": "clear_thinking_20251015"} are done here: leave it out'
            raise refuse(f"{path}.type", f"is {shown(edit.type)}, but {known}")
        if edit.keep != "all":
            messages = _cleared(messages, _turns(edit.keep, f"{path}.keep"))
    return messages


def _turns(keep: Any, path: str) -> int:
    if keep is None:
        return 1
    try:
        turns = msgspec.convert(keep, ThinkingTurns).value
    except msgspec.ValidationError:
        turns = 0
    if turns < 1:
        raise refuse(path, f'is {shown(keep)}, but must be "all" or like {{"type": "thinking_turns", "value": 1}}')
    return turns


def _cleared(messages: list[dict[str, Any]], turns: int) -> list[dict[str, Any]]:
    """Only the newest ``turns`` of the assistant's messages with thoughts keep them."""
    thinking = [index for index, one in enumerate(messages) if one.get("reasoning_content")]
    cleared = set(thinking[:-turns])
    return [
        {key: value for key, value in one.items() if key != "reasoning_content"} if index in cleared else one
        for index, one in enumerate(messages)
    ]
