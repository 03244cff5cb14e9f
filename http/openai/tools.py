"""OpenAI's tools: their forms in a body, which of them the model is offered, and the choice among them."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from plimsoll.engine.protocol import Tool
from plimsoll.http import left_out
from plimsoll.http.body import check_free, refuse, shown
from plimsoll.http.openai.shell import SHELL, shell_tool

FUNCTION, CUSTOM = "function", "custom"
_MODES = ("auto", "none", "required")
ToolName = Annotated[str, Meta(pattern="^[a-zA-Z0-9_./:@+-]{1,256}$")]
_NAME_RULE = "1 to 256 letters, digits and characters of _ - . / : @ +"
_NAMESPACE = "namespace"
# A custom tool is offered as a function with one parameter, of this name.
INPUT = "input"


class Function(msgspec.Struct):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Custom(msgspec.Struct):
    """A tool that takes one free text; ``format`` may say in which grammar."""

    name: ToolName
    description: str | None = None
    format: Any = None


class ToolBody(msgspec.Struct):
    """A tool of a chat completion; tools of other types than function and custom are left out."""

    type: str | None = None
    function: Function | None = None
    custom: Custom | None = None


class FlatTool(msgspec.Struct):
    """A tool of a response: its fields beside the type. A namespace holds ``tools`` of its own."""

    type: str | None = None
    name: ToolName | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    format: Any = None
    tools: list["FlatTool"] | None = None


class CalledFunction(msgspec.Struct):
    name: str
    arguments: str | dict[str, Any] | None = None


class CalledCustom(msgspec.Struct):
    name: str
    input: str | None = None


class CalledTool(msgspec.Struct):
    """A call that an assistant's message of the conversation has made."""

    function: CalledFunction | None = None
    custom: CalledCustom | None = None
    id: str | None = None
    type: str | None = None


ALLOWED = {
    "tools": 'a list of tools like {"type": "function", "function": {"name": "f", "parameters": {}}}',
    "tools[].type": "a string, such as function or custom",
    "tools[].function": 'an object like {"name": "f", "parameters": {}}',
    "tools[].function.name": _NAME_RULE,
    "tools[].custom.name": _NAME_RULE,
    "tools[].tools[].name": _NAME_RULE,
    "tools[].name": _NAME_RULE,
    "tools[].function.parameters": "a JSON schema",
    "tools[].parameters": "a JSON schema",
    "messages[].tool_calls[].type": "function or custom",
    "messages[].tool_calls[].function.arguments": "a string of JSON, or an object",
    "parallel_tool_calls": "true or false",
}


def choose(given: Any, tools: tuple[Tool, ...]) -> dict[str, Any]:
    """``tools`` and ``tool_choice`` of a ``ChatRequest``. Raises ``BadRequest`` for a choice that can't be made."""
    if isinstance(given, dict):
        check_free(given, "tool_choice")  # a response returns it to the client
        return _choose_among(given, tools) if given.get("type") == "allowed_tools" else _choose_function(given, tools)
    mode = "auto" if given is None else given
    if mode not in _MODES:
        raise refuse("tool_choice", f"is {shown(given)}, but must be auto, none, required or a function")
    if mode == "required" and not tools:
        raise refuse("tool_choice", "is required, but there are no tools")
    return {"tools": tools, "tool_choice": mode}


def _choose_among(given: dict[str, Any], tools: tuple[Tool, ...]) -> dict[str, Any]:
    """Only some of the tools are allowed: nested in chat completions, flat in responses."""
    told = given.get("allowed_tools")
    told = told if isinstance(told, dict) else given
    listed = told.get("tools")
    allowed_ones = [one for one in listed or () if isinstance(one, dict)]
    kinds = [one.get("type") for one in allowed_ones]
    named = [SHELL] if SHELL in kinds else []
    # Tools of other types are left out.
    ours = (one for one, kind in zip(allowed_ones, kinds, strict=True) if kind in (FUNCTION, CUSTOM, None))
    named += [_named(one, "tool_choice.tools")[0] for one in ours]
    allowed = tuple(tool for tool in tools if tool.name in named)
    if not allowed:
        raise refuse("tool_choice.tools", "names none of the tools")
    return choose(told.get("mode"), allowed)


def _choose_function(given: dict[str, Any], tools: tuple[Tool, ...]) -> dict[str, Any]:
    if given.get("type") not in (FUNCTION, CUSTOM):
        raise refuse(
            "tool_choice.type", f"is {shown(given.get('type'))}, but must be function, custom or allowed_tools"
        )
    name, param = _named(given, "tool_choice")
    chosen = tuple(tool for tool in tools if tool.name == name)
    if not chosen:
        names = ", ".join(tool.name for tool in tools) or "none"
        raise refuse(param, f"is {shown(name)}, but the tools are: {names}")
    if name in _MODES:  # the only one of the tools, and required, says the same without being mistaken for a mode
        return {"tools": chosen, "tool_choice": "required"}
    return {"tools": tools, "tool_choice": name}


def _named(given: dict[str, Any], param: str) -> tuple[str, str]:
    """The tool's name and where it stands: nested in chat completions, flat in responses."""
    kind = CUSTOM if given.get("type") == CUSTOM else FUNCTION
    nested = given.get(kind)
    name, where = given.get("name"), f"{param}.name"
    if isinstance(nested, dict) or name is None:
        name, where = (nested.get("name") if isinstance(nested, dict) else None), f"{param}.{kind}.name"
    if not isinstance(name, str):
        raise refuse(where, "is missing, but must be the name of one of the tools")
    return name, where


class Known(msgspec.Struct, frozen=True):
    """How the client knows a tool that the model calls by another name, or as a function although it is none."""

    name: str
    namespace: str | None = None
    kind: str = FUNCTION


class Offered:
    """The tools that are offered to the model, and ``known``, the client's own words for those that differ."""

    def __init__(self) -> None:
        self._tools: dict[str, Tool] = {}
        self.known: dict[str, Known] = {}

    @property
    def tools(self) -> tuple[Tool, ...]:
        return tuple(self._tools.values())

    def called(self, name: str, namespace: str | None) -> str:
        """The name under which the model knows the tool that a client's item names."""
        if namespace:
            for ours, known in self.known.items():
                if (known.name, known.namespace) == (name, namespace):
                    return ours
        return name

    def add(self, one: Tool, path: str) -> None:
        """Offer it. Raises ``BadRequest`` for a name that is taken."""
        check_free(one.parameters, f"{path}.parameters")
        if one.name in self._tools:
            raise refuse(f"{path}.name", f"is {shown(one.name)}, but another tool has that name already")
        self._tools[one.name] = one

    def add_custom(self, given: Custom | FlatTool, path: str) -> None:
        """Offer a tool that takes a free text, as a function that takes it as its one string."""
        check_free(given.format, f"{path}.format")
        form = given.format if isinstance(given.format, dict) else {}
        nested = form.get("grammar")
        grammar = nested if isinstance(nested, dict) else form
        told = [given.description or ""]
        if isinstance(definition := grammar.get("definition"), str):
            told.append(f"The input follows this {grammar.get('syntax') or ''} grammar:\n{definition}")
        name = given.name or ""
        self.add(Tool(name, "\n\n".join(filter(None, told)), _one_text("The whole input, as it is.")), path)
        self.known[name] = Known(name, kind=CUSTOM)

    def add_shell(self, path: str) -> None:
        """Offer the client's own shell, as a function that takes a command."""
        self.add(shell_tool(), path)
        self.known[SHELL] = Known(SHELL, kind=SHELL)

    def add_namespace(self, space: FlatTool, path: str) -> None:
        """Offer a namespace's functions under their own names; a name that is taken gets the namespace before it."""
        for index, inner in enumerate(space.tools or ()):
            where = f"{path}.tools[{index}]"
            if inner.type not in (FUNCTION, None):
                left_out.note("tool", inner.type)
                continue
            name = _needed(inner, where)
            ours = f"{_word(space.name)}__{name}" if name in self._tools else name
            self.add(_function(inner, ours), where)
            self.known[ours] = Known(name, space.name)


def of_chat(bodies: Sequence[ToolBody]) -> Offered:
    """The tools of a chat completion. Raises ``BadRequest`` for tools that are not whole, and for two of one name."""
    offered = Offered()
    for index, body in enumerate(bodies):
        path = f"tools[{index}]"
        if body.type == CUSTOM:
            if body.custom is None:
                raise refuse(f"{path}.custom", 'is missing, but must be an object like {"name": "f"}')
            offered.add_custom(body.custom, f"{path}.custom")
        elif body.type in (FUNCTION, None):
            if body.function is None:
                raise refuse(
                    f"{path}.function", 'is missing, but must be an object like {"name": "f", "parameters": {}}'
                )
            offered.add(_function(body.function, body.function.name), f"{path}.function")
        else:
            left_out.note("tool", body.type)
    return offered


def of_response(bodies: Sequence[FlatTool]) -> Offered:
    """The tools of a response. Raises ``BadRequest`` as ``of_chat``."""
    offered = Offered()
    later: list[tuple[FlatTool, str]] = []
    for index, body in enumerate(bodies):
        path = f"tools[{index}]"
        if body.type == _NAMESPACE:
            later.append((body, path))
        elif body.type == CUSTOM:
            _needed(body, path)
            offered.add_custom(body, path)
        elif body.type in (FUNCTION, None):
            offered.add(_function(body, _needed(body, path)), path)
        elif body.type == SHELL:
            offered.add_shell(path)
        else:
            left_out.note("tool", body.type)
    for body, path in later:  # so that a function of no namespace keeps its name
        offered.add_namespace(body, path)
    return offered


def text_input(arguments: Any) -> str:
    """The free text of a custom tool in the arguments that the model gave; what is no JSON is that text itself."""
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments)
        except (msgspec.DecodeError, RecursionError):
            return str(arguments)
    if isinstance(arguments, Mapping) and isinstance(text := arguments.get(INPUT), str):
        return text
    return msgspec.json.encode(arguments).decode()


def _function(given: Function | FlatTool, name: str) -> Tool:
    return Tool(name, given.description or "", given.parameters or {}, strict=bool(given.strict))


def _one_text(about: str) -> dict[str, Any]:
    return {"type": "object", "properties": {INPUT: {"type": "string", "description": about}}, "required": [INPUT]}


def _needed(tool: FlatTool, path: str) -> str:
    if tool.name is None:
        raise refuse(f"{path}.name", "is missing, but must be a tool's name")
    return tool.name


def _word(text: str | None) -> str:
    return re.sub(r"\W", "_", text or _NAMESPACE)
