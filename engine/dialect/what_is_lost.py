"""What of a conversation did not reach the prompt: nothing that a client sent is to be left out in silence."""

import json
import re
from typing import Any

from plimsoll.engine.dialect.thoughts import Thoughts
from plimsoll.engine.protocol import Tool

_WORD = re.compile(r"\w{3,}")
_MOST_WORDS = 8


def lost(messages: list[dict[str, Any]], tools: tuple[Tool, ...], prompt: str, thoughts: Thoughts | None) -> list[str]:
    """Names of what is missing. A template may write a text in another way, such as JSON: its words are looked for."""
    missing = []
    place = 0
    for index, message in enumerate(messages):
        content = message["content"]
        if message["role"] == "assistant" and thoughts is not None:
            content = content.rpartition(thoughts.end)[2]
        if content.strip():
            found = prompt.find(content.strip(), place)
            if found >= 0:
                place = found + len(content.strip())
            elif not _shown(content, prompt):
                missing.append(f"messages[{index}]")
        for call in message.get("tool_calls") or []:
            function = call["function"]
            if function["name"] not in prompt or not all(
                _shown(text, prompt) for text in _texts(function["arguments"])
            ):
                missing.append(f"a call of {function['name']} in messages[{index}]")
    missing += [f"the tool {tool.name}" for tool in tools if not _told(tool, prompt)]
    return missing


def _told(tool: Tool, prompt: str) -> bool:
    return tool.name in prompt and _shown(tool.description, prompt)


def _texts(value: Any) -> list[str]:
    """All strings in a value."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in inner for text in _texts(one)]


def _shown(text: str, prompt: str) -> bool:
    text = text.strip()
    if text in prompt or json.dumps(text, ensure_ascii=False)[1:-1] in prompt:
        return True
    words = _WORD.findall(text[:2000])[:_MOST_WORDS]
    return all(word in prompt for word in words)
