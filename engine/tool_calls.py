"""Tool calls in an answer's text: JSON ones are passed on while they are written, others when they are complete."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tool_parsers import json_tools

from plimsoll.engine.protocol import Tool

Parser = Callable[[str, Any], Any]


@dataclass(frozen=True, slots=True)
class CallFormat:
    """How calls are written between ``start`` and ``end`` (empty: up to the end of the answer).

    ``json`` is the form {"name": ..., "arguments": {...}}; ``native`` is whether the model's template teaches it.
    """

    start: str
    end: str
    parse: Parser
    tools: list[dict[str, Any]] = field(default_factory=list)
    json: bool = False
    native: bool = False


class CallPiece(NamedTuple):
    """``name`` begins a new call; ``arguments`` are characters of its JSON."""

    name: str
    arguments: str


def openai_tools(tools: tuple[Tool, ...]) -> list[dict[str, Any]]:
    """As chat templates and mlx-lm's parsers expect them."""
    return [{"type": "function", "function": {**_described(tool), "parameters": tool.parameters}} for tool in tools]


def json_format(tools: tuple[Tool, ...], *, native: bool = False) -> CallFormat:
    """The form that needs no help of the model's template, and the one that a grammar can force."""
    start, end = json_tools.tool_call_start, json_tools.tool_call_end
    return CallFormat(start, end, json_tools.parse_tool_call, openai_tools(tools), json=True, native=native)


def call_format(tokenizer: TokenizerWrapper, tools: tuple[Tool, ...]) -> CallFormat:
    """The model's own form of calls where mlx-lm can read it, else JSON."""
    if not knows_tools(tokenizer):
        return json_format(tools)
    if tokenizer.tool_parser is json_tools.parse_tool_call:
        return json_format(tools, native=True)
    start, end = str(tokenizer.tool_call_start), str(tokenizer.tool_call_end)
    return CallFormat(start, end, tokenizer.tool_parser, openai_tools(tools), native=True)


def knows_tools(tokenizer: TokenizerWrapper) -> bool:
    """Whether the model's template takes tools and mlx-lm can read the calls it leads to."""
    template = tokenizer.chat_template
    return bool(tokenizer.has_tool_calling) and (not isinstance(template, str) or "tools" in template)


class CallReader:
    """The text of one call, or of several where the format has no mark between them."""

    def __init__(self, form: CallFormat) -> None:
        self._form = form
        self._text = ""
        self._json = _JsonScanner() if form.json else None

    def add(self, text: str) -> list[CallPiece]:
        self._text += text
        return self._json.add(text) if self._json else []

    def close(self, *, complete: bool) -> tuple[list[CallPiece], str]:
        """What the end of the call makes certain, and the text that is no call after all.

        ``complete`` is whether the mark of the end followed.
        """
        if self._json and self._json.begun:
            return [], ""
        try:
            parsed = self._form.parse(self._text, self._form.tools)
            calls = [_piece(call) for call in (parsed if isinstance(parsed, list) else [parsed])]
        except Exception:  # noqa: BLE001 - a parser of mlx-lm on whatever a model wrote
            return [], self._form.start + self._text + (self._form.end if complete else "")
        return calls, ""


class _JsonScanner:
    """Finds the name, then follows the arguments' brackets, so that they can be passed on as they come."""

    _HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)+")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')

    def __init__(self) -> None:
        self.begun = False
        self._head = ""
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._done = False

    def add(self, text: str) -> list[CallPiece]:
        if self._done:
            return []
        if self.begun:
            return [CallPiece("", piece)] if (piece := self._arguments(text)) else []
        self._head += text
        if (match := self._HEAD.match(self._head)) is None:
            return []
        try:
            name = json.loads(match[1])
        except ValueError:
            self._done = True
            return []
        self.begun = True
        return [CallPiece(name, self._arguments(self._head[match.end() :]))]

    def _arguments(self, text: str) -> str:
        """The part of ``text`` that belongs to the arguments."""
        for index, letter in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = letter == "\\"
                self._in_string = letter != '"'
            elif letter == '"':
                self._in_string = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self._done = True
                    return text[: index + 1]
        return text


def _piece(call: Any) -> CallPiece:
    """Raises ``ValueError`` or ``LookupError`` where ``call`` is none."""
    name = call["name"]
    arguments = call["arguments"] if "arguments" in call else call.get("parameters", {})
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise ValueError("a call needs a name and an object of arguments")
    return CallPiece(name, json.dumps(arguments, ensure_ascii=False))


def _described(tool: Tool) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description}
