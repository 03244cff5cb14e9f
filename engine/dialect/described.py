"""Tools, calls and results in words, for templates that know none, and schemas in the form that templates read."""

import json
from typing import Any

from plimsoll.engine.dialect.template import as_json
from plimsoll.engine.dialect.values import referred
from plimsoll.engine.protocol import Tool

# The words of the template that taught most models to call tools.
_INSTRUCTION = """You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a JSON object with the function's name and arguments within <tool_call></tool_call> \
XML tags:
<tool_call>
{{"name": "<function-name>", "arguments": {{<arguments as a JSON object>}}}}
</tool_call>"""


def openai_tools(tools: tuple[Tool, ...]) -> list[dict[str, Any]]:
    """As chat templates expect them."""
    return [
        {
            "type": "function",
            "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
        }
        for tool in tools
    ]


def plain_tools(tools: tuple[Tool, ...]) -> list[dict[str, Any]]:
    """The same with schemas that hold nothing but what the simplest template can read: one type for each value."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": {
                    "type": "object",
                    "properties": {},
                    "required": [],
                    **_plain(tool.parameters, tool.parameters, 0),
                },
            },
        }
        for tool in tools
    ]


def instruction(tools: tuple[Tool, ...]) -> str:
    """What the system message says of the tools, and how they are called."""
    return _INSTRUCTION.format(tools="\n".join(as_json(tool) for tool in openai_tools(tools)))


CALL_FORMS = {
    "<|tool_call_start|>": "<|tool_call_end|>",
    "<|tool_call|>": "<|/tool_call|>",
}
"""Marks of families whose templates take no calls, and what ends their calls."""


def calls_text(calls: list[dict[str, Any]], mark: str) -> str:
    """The calls of one message as the model's own text: as its family's ``mark`` wants, or as they were described."""
    functions = [call["function"] for call in calls]
    if mark == "<|tool_call_start|>":
        return f"{mark}[{', '.join(map(_pythonic, functions))}]{CALL_FORMS[mark]}"
    if mark:
        written = [{"name": one["name"], "arguments": one["arguments"]} for one in functions]
        return f"{mark}{as_json(written)}"
    return "\n".join(
        f"<tool_call>\n{as_json({'name': one['name'], 'arguments': one['arguments']})}\n</tool_call>"
        for one in functions
    )


def _pythonic(function: dict[str, Any]) -> str:
    written = ", ".join(f"{key}={_python(value)}" for key, value in function["arguments"].items())
    return f"{function['name']}({written})"


def result_text(content: str) -> str:
    return f"<tool_response>\n{content}\n</tool_response>"


def _python(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return as_json(value) if isinstance(value, dict | list) else repr(value)


_MOST_DEPTH = 24


def _plain(schema: Any, root: dict[str, Any], depth: int) -> Any:
    if isinstance(schema, list):
        return [_plain(one, root, depth + 1) for one in schema]
    if not isinstance(schema, dict) or depth > _MOST_DEPTH:
        return schema
    found = {key: value for key, value in schema.items() if not key.startswith("$") and key != "additionalProperties"}
    if isinstance(reference := schema.get("$ref"), str):
        target = referred(reference, root)
        found = {**(target if isinstance(target, dict) and depth < 8 else {}), **found}
    for union in ("anyOf", "oneOf", "allOf"):
        members = [one for one in found.get(union) or [] if isinstance(one, dict) and one.get("type") != "null"]
        if members:
            found.pop(union)
            found = {**members[0], **found}
    if isinstance(found.get("type"), list):
        named = [one for one in found["type"] if one != "null"]
        found["type"] = named[0] if named else "null"
    if isinstance(found.get("enum"), list):
        found["enum"] = [one for one in found["enum"] if one is not None]
    properties = found.get("properties")
    result = {key: _plain(value, root, depth + 1) for key, value in found.items() if key != "properties"}
    if isinstance(properties, dict):
        result["properties"] = {
            key: {"type": "string", "description": "", **_plain(value, root, depth + 1)}
            if isinstance(value, dict)
            else value
            for key, value in properties.items()
        }
    return result
