"""Compiles JSON schemas and forced tool calls into llguidance matchers. No MLX: this runs beside the step thread.

JSON is written compactly, with at most one space after a comma or a colon: where a grammar allows white space
without end, small models write it without end.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llguidance import LLMatcher, LLTokenizer
from mlx_lm.tokenizer_utils import TokenizerWrapper

from plimsoll.engine.chat import grammar_trial
from plimsoll.engine.chat.call_grammar import CallGrammar
from plimsoll.engine.chat.strict_grammar import free_answer
from plimsoll.engine.dialect.call_form import HERMES, CallForm
from plimsoll.engine.engine import Unfinished
from plimsoll.engine.protocol import Tool
from plimsoll.errors import BadRequest

MAX_SCHEMA_BYTES = 64 * 1024
MAX_SCHEMA_DEPTH = 32
_SPACING = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_MOST_KEPT = 16
_MOST_CALLS = 8
# Schemas of these words alone, as most tools have, compile in milliseconds: they need no trial in a child process.
_PLAIN_WORDS = frozenset({
    "$schema", "additionalProperties", "anyOf", "const", "default", "description", "enum", "examples", "items",
    "properties", "required", "title", "type", "x-guidance",
})  # fmt: skip
_MOST_PLAIN_BYTES = 16 * 1024
# What takes seconds is nearly always a multiple of a large number, or regular expressions that must hold together.
_COSTLY = re.compile(r'"multipleOf": ([0-9.]{4}|[^ ,}]*e)|"allOf": .*"pattern": ')


@dataclass(frozen=True, slots=True)
class Grammar:
    """What is compiled; ``param`` is the request's parameter that asks for it, ``schemas`` are those in it.

    ``is_free`` is whether it begins with any text, of which some step costs more than one in JSON.
    """

    lines: tuple[str, ...]
    param: str
    schemas: tuple[str, ...] = ()
    is_free: bool = False

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class Grammars:
    """The grammars of one model, for all threads.

    The tokenizer's data (0.2 s, 49,000 tokens) is made when first needed.
    """

    def __init__(self, tokenizer: TokenizerWrapper, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = max(vocab_size, len(tokenizer))
        self._tokens: LLTokenizer | None = None
        self._special: dict[str, int] | None = None
        self._kept: OrderedDict[str, LLMatcher | str] = OrderedDict()
        self._lock = threading.RLock()

    def answer(
        self, schema: dict[str, Any] | None, tools: tuple[Tool, ...], *, parallel: bool, form: CallForm = HERMES
    ) -> Grammar:
        """The whole answer is JSON that ``schema`` allows, or any object; or, with ``tools``, calls of them.

        ``form`` is how the model's family writes both. Raises ``BadRequest`` (response_format, tools).
        """
        param = "response_format"
        wanted = {"type": "object"} if schema is None else schema
        rules, schemas = self._rules(form)
        written = _json(wanted, param, "The schema")
        lines = [f"answer: {rules.literal(form.answer_begin)} json {rules.literal(form.answer_end)}".rstrip()]
        lines.append(f"json: %json {written}")
        if tools:
            lines += rules.calls(tools, most=_MOST_CALLS if parallel else 1)
        start = self._start("answer | calls" if tools else "answer", rules)
        return Grammar((start, *lines), param, (written, *schemas))

    def calls(self, tools: tuple[Tool, ...], choice: str, *, parallel: bool, form: CallForm = HERMES) -> Grammar:
        """The whole answer is one call of the tool named ``choice``, or one or more of any (``required``).

        ``form`` is how the model's family writes calls. Raises ``BadRequest`` (tools).
        """
        anyone = choice == "required"
        chosen = tools if anyone else tuple(tool for tool in tools if tool.name == choice)
        rules, schemas = self._rules(form)
        lines = rules.calls(chosen, most=_MOST_CALLS if anyone and parallel else 1)
        return Grammar((self._start("calls", rules), *lines), "tools", tuple(schemas))

    def strict(self, tools: tuple[Tool, ...], *, parallel: bool, form: CallForm = HERMES) -> Grammar:
        """Any answer, in which calls of strict tools have arguments that their schemas allow.

        What follows the mark of a call is a call of one of ``tools``. Raises ``BadRequest`` (tools).
        """
        rules, schemas = self._rules(form)
        ends = frozenset(self._tokenizer.eos_token_ids)
        lines = free_answer(rules, tools, most=_MOST_CALLS if parallel else 1, ends=ends)
        return Grammar(tuple(lines), "tools", tuple(schemas), is_free=True)

    def known(self, grammar: Grammar) -> LLMatcher | str | None:
        """A matcher for one answer, or why the grammar is refused; None if it has not been asked for of late."""
        with self._lock:
            if (kept := self._kept.get(grammar.text)) is None:
                return None
            self._kept.move_to_end(grammar.text)
            return kept if isinstance(kept, str) else kept.deep_copy()

    def compile(self, grammar: Grammar, trial: grammar_trial.Trial, cpu_s: float) -> LLMatcher | str | None:
        """As ``known``, after a trial that may take ``cpu_s`` where one is needed; None if that is not enough."""
        if found := self.known(grammar):
            return found
        if not (_are_plain(grammar.schemas) or trial.affordable(_schemas_only(grammar.schemas), cpu_s)):
            return None
        made = self._made(grammar)
        self._keep(grammar, made)
        return made if isinstance(made, str) else made.deep_copy()

    def refuse(self, grammar: Grammar) -> str:
        """Remember that the grammar is too costly, so that the next request with it is refused at once."""
        sentence = (
            f"This schema takes more than {grammar_trial.CPU_S:.0f} s or 1 GiB to turn into a grammar. Simplify it: "
            "large values of multipleOf and patterns in allOf cost most."
        )
        self._keep(grammar, sentence)
        return sentence

    def _keep(self, grammar: Grammar, made: LLMatcher | str) -> None:
        with self._lock:
            self._kept[grammar.text] = made
            if len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)

    def _rules(self, form: CallForm) -> tuple[CallGrammar, list[str]]:
        """What writes calls in the form, and the schemas that it will have written."""
        schemas: list[str] = []

        def write(schema: dict[str, Any], what: str) -> str:
            schemas.append(_json(schema, "tools", what))
            return schemas[-1]

        return CallGrammar(form, self._special_tokens(), write), schemas

    def _start(self, what: str, rules: CallGrammar) -> str:
        """Behind thoughts some families begin a message anew."""
        lead = f"({rules.literal(rules.form.lead)})? " if rules.form.lead else ""
        return f"start: {lead}({what})"

    def _special_tokens(self) -> dict[str, int]:
        """The tokens that have no text that a grammar could match."""
        if self._special is None:
            vocabulary = self._vocabulary()
            added = getattr(self._tokenizer, "added_tokens_decoder", None) or {}
            named = {token.content: number for number, token in added.items()}
            self._special = {text: number for text, number in named.items() if vocabulary.is_special_token(number)}
        return self._special

    def _made(self, grammar: Grammar) -> LLMatcher | str:
        """The matcher, or why there is none."""
        with self._lock:
            vocabulary = self._vocabulary()
        # Without the GIL, for as long as the trial took.
        limits = grammar_trial.limits(free=grammar.is_free)
        matcher = LLMatcher(vocabulary, LLMatcher.grammar_from_lark(grammar.text), log_level=0, limits=limits)
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


class Uncompiled(Unfinished):
    """A request whose grammar nobody has asked for of late; ``finish`` makes of a matcher what is submitted."""

    def __init__(self, grammars: Grammars, grammar: Grammar, finish: Callable[[LLMatcher], Any]) -> None:
        self._grammars = grammars
        self._grammar = grammar
        self._finish = finish
        self._trial = grammar_trial.Trial()
        self._found = grammars.known(grammar)
        self.looks_costly = _COSTLY.search(grammar.text) is not None

    @property
    def is_known(self) -> bool:
        """Whether the result is there already, so that no work is needed."""
        return self._found is not None

    def work(self, *, last: bool) -> bool:
        cpu_s = grammar_trial.CPU_S if last else grammar_trial.FIRST_CPU_S
        self._found = self._grammars.compile(self._grammar, self._trial, cpu_s)
        if last and self._found is None:
            # A trial that was stopped says nothing about the grammar.
            self._found = "stopped" if self._trial.stopped else self._grammars.refuse(self._grammar)
        return self.is_known

    def stop(self) -> None:
        self._trial.stop()

    def prepared(self) -> Any:
        if not isinstance(self._found, LLMatcher):
            raise BadRequest(self._found or "not compiled", param=self._grammar.param)
        return self._finish(self._found)


def _json(schema: dict[str, Any], param: str, what: str) -> str:
    """On one line, with our spacing whatever the client says. Raises ``BadRequest`` for what is too large."""
    if (depth := _depth(schema)) > MAX_SCHEMA_DEPTH:
        raise BadRequest(f"{what} is {depth} levels deep; at most {MAX_SCHEMA_DEPTH} can be used.", param=param)
    text = json.dumps({**schema, "x-guidance": _SPACING})
    if len(text) > MAX_SCHEMA_BYTES:
        raise BadRequest(f"{what} has {len(text)} bytes of JSON; at most {MAX_SCHEMA_BYTES} can be used.", param=param)
    return text


def _are_plain(schemas: tuple[str, ...]) -> bool:
    """Whether the schemas are small and hold nothing that could be costly to compile."""
    if sum(map(len, schemas)) > _MOST_PLAIN_BYTES:
        return False
    left: list[Any] = [json.loads(schema) for schema in schemas]
    while left:
        schema = left.pop()
        if isinstance(schema, bool):
            continue
        if not isinstance(schema, dict) or not schema.keys() <= _PLAIN_WORDS:
            return False
        properties, choices = schema.get("properties", {}), schema.get("anyOf", [])
        if not (isinstance(properties, dict) and isinstance(choices, list)):
            return False
        left += [*properties.values(), *choices]
        left += [schema[word] for word in ("items", "additionalProperties") if word in schema]
    return True


def _schemas_only(schemas: tuple[str, ...]) -> str:
    """The grammar's schemas by themselves: the marks around calls are tokens of a vocabulary that a trial lacks."""
    names = [f"s{index}" for index in range(len(schemas))]
    bodies = [f"{name}: %json {schema}" for name, schema in zip(names, schemas, strict=True)]
    return "\n".join([f"start: {' | '.join(names) or '/x/'}", *bodies])


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
