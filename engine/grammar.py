"""Compiles JSON schemas and forced tool calls into llguidance matchers. No MLX: this runs on the reader thread.

JSON is written compactly, with at most one space after a comma or a colon: where a grammar allows white space
without end, small models write it without end.
"""

import json
from collections import OrderedDict
from typing import Any

from llguidance import LLMatcher, LLTokenizer
from mlx_lm.tokenizer_utils import TokenizerWrapper

from plimsoll.engine import grammar_trial
from plimsoll.engine.protocol import Tool
from plimsoll.engine.tool_calls import json_format
from plimsoll.errors import BadRequest

MAX_SCHEMA_BYTES = 64 * 1024
MAX_SCHEMA_DEPTH = 32
_SPACING = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_MOST_KEPT = 16
_MOST_CALLS = 8


class Grammars:
    """The grammars of one model. The tokenizer's data (0.2 s, 49,000 tokens) is made when first needed."""

    def __init__(self, tokenizer: TokenizerWrapper, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = max(vocab_size, len(tokenizer))
        self._tokens: LLTokenizer | None = None
        self._kept: OrderedDict[str, LLMatcher | str] = OrderedDict()

    def answer(self, schema: dict[str, Any] | None, tools: tuple[Tool, ...], *, parallel: bool) -> LLMatcher:
        """The whole answer is JSON that ``schema`` allows, or any object; or, with ``tools``, calls of them.

        Raises ``BadRequest`` (response_format, tools).
        """
        param = "response_format"
        wanted = {"type": "object"} if schema is None else schema
        lines = [f"answer: %json {_json(wanted, param, 'The schema')}"]
        lines += self._calls(tools, most=_MOST_CALLS if parallel else 1)
        return self._compile(["start: answer | calls" if tools else "start: answer", *lines], param)

    def calls(self, tools: tuple[Tool, ...], choice: str, *, parallel: bool) -> LLMatcher:
        """The whole answer is one call of the tool named ``choice``, or one or more of any (``required``).

        Raises ``BadRequest`` (tools).
        """
        anyone = choice == "required"
        chosen = tools if anyone else tuple(tool for tool in tools if tool.name == choice)
        most = _MOST_CALLS if anyone and parallel else 1
        return self._compile(["start: calls", *self._calls(chosen, most=most)], "tools")

    def _calls(self, tools: tuple[Tool, ...], *, most: int) -> list[str]:
        if not tools:
            return []
        form = json_format(tools)
        start, end = self._mark(form.start), self._mark(form.end)
        more = f' ("\\n" call){{0,{most - 1}}}' if most > 1 else ""
        lines = [f"calls: call{more}", f"call: {' | '.join(f'call{index}' for index in range(len(tools)))}"]
        for index, tool in enumerate(tools):
            head = json.dumps(f'\n{{"name": {json.dumps(tool.name)}, "arguments": ')
            schema = {"type": "object", **tool.parameters}
            lines.append(f'call{index}: {start} {head} arguments{index} "}}\\n" {end}')
            lines.append(f"arguments{index}: %json {_json(schema, 'tools', f'The parameters of tool {tool.name}')}")
        return lines

    def _compile(self, lines: list[str], param: str) -> LLMatcher:
        """What was refused is kept, too: several answers to one request would each take its time again."""
        grammar = "\n".join(lines)
        kept = self._kept.pop(grammar, None) or self._made(grammar, lines)
        self._kept[grammar] = kept
        if len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)
        if isinstance(kept, str):
            raise BadRequest(kept, param=param)
        return kept.deep_copy()

    def _made(self, grammar: str, lines: list[str]) -> LLMatcher | str:
        """The matcher, or why there is none."""
        vocabulary = self._vocabulary()
        if not grammar_trial.affordable(_schemas_only(lines)):
            return (
                f"This schema takes more than {grammar_trial.CPU_S} s or 1 GiB to turn into a grammar. Simplify it: "
                "large values of multipleOf and patterns in allOf cost most."
            )
        text, limits = LLMatcher.grammar_from_lark(grammar), grammar_trial.limits()
        matcher = LLMatcher(vocabulary, text, log_level=0, limits=limits)
        # The first step shows whether the limits of a step are enough, and builds what all steps share.
        if not matcher.is_error() and not any(matcher.compute_bitmask()):
            return "No JSON at all satisfies this schema. Change the schema."
        if matcher.is_error():
            return f"This schema can't be turned into a grammar: {' '.join(matcher.get_error().split())[:500]}"
        return matcher

    def _vocabulary(self) -> LLTokenizer:
        if self._tokens is None:
            backend = getattr(self._tokenizer, "backend_tokenizer", None)
            if backend is None:
                raise BadRequest(
                    "This model's tokenizer can't be used with grammars, which JSON formats and forced tool calls "
                    "need. Ask without them, or use another model.",
                    param="response_format",
                )
            ends = sorted(self._tokenizer.eos_token_ids)
            self._tokens = LLTokenizer(backend.to_str(), n_vocab=self._vocab_size, eos_token=ends)
        return self._tokens

    def _mark(self, text: str) -> str:
        """The mark as a terminal: special tokens have no text that a grammar could match."""
        token = self._tokenizer.get_vocab().get(text)
        if token is not None and self._vocabulary().is_special_token(token):
            return f"<[{token}]>"
        return json.dumps(text)


def _json(schema: dict[str, Any], param: str, what: str) -> str:
    """On one line, with our spacing whatever the client says. Raises ``BadRequest`` for what is too large."""
    if (depth := _depth(schema)) > MAX_SCHEMA_DEPTH:
        raise BadRequest(f"{what} is {depth} levels deep; at most {MAX_SCHEMA_DEPTH} can be used.", param=param)
    text = json.dumps({**schema, "x-guidance": _SPACING})
    if len(text) > MAX_SCHEMA_BYTES:
        raise BadRequest(f"{what} has {len(text)} bytes of JSON; at most {MAX_SCHEMA_BYTES} can be used.", param=param)
    return text


def _schemas_only(lines: list[str]) -> str:
    """The grammar's schemas by themselves: the marks around calls are tokens of a vocabulary that a trial lacks."""
    schemas = [schema for line in lines for _, found, schema in [line.partition("%json ")] if found]
    names = [f"s{index}" for index in range(len(schemas))]
    bodies = [f"{name}: %json {schema}" for name, schema in zip(names, schemas, strict=True)]
    return "\n".join([f"start: {' | '.join(names)}", *bodies])


def _depth(schema: Any) -> int:
    """Levels of nesting, found without recursion, which a hostile schema would exhaust."""
    depth, level = 0, [schema]
    while level:
        children = [
            child for item in level for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]  # fmt: skip
        depth, level = depth + 1, children
    return depth
