"""Tools, the choice among them, and the form of an answer, as OpenAI's chat completions and responses ask for them."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from plimsoll.engine.protocol import Format, Tool
from plimsoll.http.body import check_free, refuse, shown

_MODES = ("auto", "none", "required")
ToolName = Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
_NAME_RULE = "1 to 64 letters, digits, underscores and hyphens"


class Function(msgspec.Struct):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def tool(self) -> Tool:
        return Tool(self.name, self.description or "", self.parameters or {})


class ToolBody(msgspec.Struct):
    """A tool of a chat completion."""

    type: Literal["function"]
    function: Function


class FlatTool(Function, kw_only=True):
    """A tool of a response: the function's fields beside the type."""

    type: Literal["function"]


class CalledFunction(msgspec.Struct):
    name: str
    arguments: str = ""


class CalledTool(msgspec.Struct):
    """A call that an assistant's message of the conversation has made."""

    function: CalledFunction
    id: str | None = None
    type: Literal["function"] = "function"


class JsonSchema(msgspec.Struct):
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(msgspec.Struct):
    """The format of a chat completion."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class TextFormat(msgspec.Struct):
    """The format of a response: the schema's fields beside the type."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


ALLOWED = {
    "tools": 'a list of tools like {"type": "function", "function": {"name": "f", "parameters": {}}}',
    "tools[].type": "function: other tools are not supported",
    "tools[].function": 'an object like {"name": "f", "parameters": {}}',
    "tools[].function.name": _NAME_RULE,
    "tools[].name": _NAME_RULE,
    "tools[].function.parameters": "a JSON schema",
    "tools[].parameters": "a JSON schema",
    "messages[].tool_calls[].type": "function",
    "parallel_tool_calls": "true or false",
    "response_format": 'an object like {"type": "text"}',
    "response_format.type": "text, json_object or json_schema",
    "response_format.json_schema": 'an object like {"name": "x", "schema": {}}',
    "response_format.json_schema.schema": "a JSON schema",
    "text.format.type": "text, json_object or json_schema",
    "text.format.schema": "a JSON schema",
}


def choose(given: Any, tools: tuple[Tool, ...]) -> dict[str, Any]:
    """``tools`` and ``tool_choice`` of a ``ChatRequest``. Raises ``BadRequest`` for a choice that can't be made."""
    if isinstance(given, dict):
        return _choose_function(given, tools)
    mode = "auto" if given is None else given
    if mode not in _MODES:
        raise refuse("tool_choice", f"is {shown(given)}, but must be auto, none, required or a function")
    if mode == "required" and not tools:
        raise refuse("tool_choice", "is required, but there are no tools")
    return {"tools": tools, "tool_choice": mode}


def _choose_function(given: dict[str, Any], tools: tuple[Tool, ...]) -> dict[str, Any]:
    name, param = _named(given)
    chosen = tuple(tool for tool in tools if tool.name == name)
    if not chosen:
        names = ", ".join(tool.name for tool in tools) or "none"
        raise refuse(param, f"is {shown(name)}, but the tools are: {names}")
    if name in _MODES:  # the only one of the tools, and required, says the same without being mistaken for a mode
        return {"tools": chosen, "tool_choice": "required"}
    return {"tools": tools, "tool_choice": name}


def _named(given: dict[str, Any]) -> tuple[str, str]:
    """The function's name and where it stands: nested in chat completions, flat in responses."""
    check_free(given, "tool_choice")  # responses give it back
    if given.get("type") != "function":
        raise refuse("tool_choice.type", f"is {shown(given.get('type'))}, but must be function")
    nested = given.get("function")
    name, param = given.get("name"), "tool_choice.name"
    if isinstance(nested, dict) or name is None:
        name, param = (nested.get("name") if isinstance(nested, dict) else None), "tool_choice.function.name"
    if not isinstance(name, str):
        raise refuse(param, "is missing, but must be the name of one of the tools")
    return name, param


def check(tools: tuple[Tool, ...], param: str) -> tuple[Tool, ...]:
    """Raises ``BadRequest`` for two tools of one name; ``param`` is the path of a name with ``{}`` for the index."""
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        check_free(tool.parameters, param.format(index).removesuffix("name") + "parameters")
        if tool.name in seen:
            raise refuse(param.format(index), f"is {shown(tool.name)}, but another tool has that name already")
        seen.add(tool.name)
    return tools


def answer_format(kind: str, schema: dict[str, Any] | None, param: str) -> Format | None:
    """The ``Format`` of a ``ChatRequest``. Raises ``BadRequest``, naming ``param``, for a schema that is not there."""
    if kind == "text":
        return None
    if kind == "json_schema" and schema is None:
        raise refuse(param, "is missing, but must be a JSON schema")
    check_free(schema, param)
    return Format(schema if kind == "json_schema" else None)
