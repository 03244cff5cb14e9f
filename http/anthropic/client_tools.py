"""The tools of an Anthropic request that the model may call, and what it reads of those that come later."""

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from plimsoll.engine.protocol import Tool
from plimsoll.errors import BadRequest
from plimsoll.http import left_out
from plimsoll.http.anthropic.blocks import Message, definitions, references
from plimsoll.http.body import check_free

# Anthropic's own search for tools runs on its servers.
_SEARCH = "tool_search_tool"


class ToolBody(msgspec.Struct):
    name: Annotated[str, Meta(min_length=1)] | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: str | None = None
    defer_loading: bool | None = None


def offered(bodies: list[ToolBody], messages: list[Message]) -> tuple[tuple[Tool, ...], dict[str, str]]:
    """The tools, and by its name the text that tells of each one that a message refers to.

    Tools that Anthropic's servers run are left out. A tool with ``defer_loading`` can be called once a message refers
    to it, and the model reads of it there and not among the other tools: so the prompt's beginning stays as it was.
    Raises ``BadRequest`` for a tool that is not whole.
    """
    own = [(index, body) for index, body in enumerate(bodies) if _is_own(body)]
    searched = any((body.type or "").startswith(_SEARCH) for body in bodies)  # then nobody here can refer to a tool
    referred = references(messages)
    first, later = [], {}
    for index, body in own:
        tool = _tool(body, f"tools[{index}]")
        if not body.defer_loading or searched:
            first.append(tool)
        elif tool.name in referred:
            later[tool.name] = tool
    later |= {tool.name: tool for tool in _defined(messages)}
    told = {name: described(tool) for name, tool in later.items()}
    in_order = (later[name] for name in referred if name in later)
    return (*first, *(msgspec.structs.replace(tool, in_messages=True) for tool in in_order)), told


def described(tool: Tool) -> str:
    """What a model reads of a tool in the middle of a conversation."""
    told = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return f"<function>{msgspec.json.encode(told).decode()}</function>"


def _is_own(body: ToolBody) -> bool:
    """Whether the client runs this tool itself; others are left out."""
    if body.type in (None, "custom"):
        return True
    left_out.note("tool", body.type)
    return False


def _defined(messages: list[Message]) -> Iterable[Tool]:
    for given in definitions(messages):
        try:
            body = msgspec.convert(given, ToolBody)
        except (msgspec.ValidationError, RecursionError) as error:
            raise BadRequest(f"a tool_addition has no tool: {error}", param="messages") from None
        if _is_own(body):
            yield _tool(body, "messages[].content[].tool.definition")


def _tool(body: ToolBody, path: str) -> Tool:
    if body.name is None:
        raise BadRequest(f"{path}.name is missing, but must be a tool's name", param=f"{path}.name")
    if body.input_schema is None:
        raise BadRequest(f"{path}.input_schema is missing, but must be a JSON schema", param=f"{path}.input_schema")
    check_free(body.input_schema, f"{path}.input_schema")
    return Tool(body.name, body.description or "", body.input_schema)
