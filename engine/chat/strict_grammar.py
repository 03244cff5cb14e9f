"""Writes the grammar of a free answer whose calls of strict tools follow their schemas.

The model may write anything until it begins a call; from there on the grammar leads it.
"""

import json
import re

from plimsoll.engine.chat.call_grammar import ANYTHING, CallGrammar, escape
from plimsoll.engine.dialect.call_form import HARMONY
from plimsoll.engine.dialect.calls.marks import LOOSE, MARKS
from plimsoll.engine.protocol import Tool

_BEGIN = r"[ \n]*(```[a-z]*[ \n]*)?\[?[ \n]*"
_ARGUMENTS = r"/[ \n]{0,2},[ \n]{0,2}\"(arguments|parameters)\"[ \n]{0,2}:[ \n]{0,2}/"
_END = r"/[ \n]{0,2}\}[ \n]{0,2}\]?([ \n]{0,2}```)?/"
# Marks that a model may write as a habit of other models' texts. All others are special tokens of their families.
_LIKELY = re.compile(r"[<\[\w= \"\]>]+")


def free_answer(rules: CallGrammar, tools: tuple[Tool, ...], *, most: int, ends: frozenset[int]) -> list[str]:
    """The lines of the grammar. ``ends`` are the tokens that end an answer."""
    if rules.form is HARMONY:
        return _in_channels(rules, tools)
    trigger, rest = rules.trigger()
    token = rules.token(trigger)
    # The reader of answers takes all families' marks for calls: a strict tool must not be called in another way.
    others = [mark for mark in (*MARKS, *LOOSE) if not trigger.startswith(mark)]
    never = [escape(mark) for mark in others if rules.token(mark) is None and _LIKELY.fullmatch(mark)]
    special = rules.other_tokens({rules.token(mark) for mark in others} | {token} | ends)
    # An answer that is nothing but JSON is read as a call, too.
    bare = [(index, tool) for index, tool in enumerate(tools) if tool.strict]
    first = [rf"{_BEGIN}\{{[ \n]*\"name\"[ \n]*:[ \n]*\"({'|'.join(escape(tool.name) for _, tool in bare)})\""]
    begins = ["bare", "FIRST"]
    lines = [f"bare: {' | '.join(f'bare{index}' for index, _ in bare)}"]
    if trigger:
        lines += _sections(trigger, token, f"{rules.literal(rest)} inner".strip(), never, first)
        begins.append("opened parts")
        never += [escape(trigger)] if token is None else []
    else:
        heads = [rules.form.begin + tool.name + rules.before_token(rules.form.gap) for tool in tools]
        first += [escape(head) for head in heads]
        if not rules.form.begin and rules.form.between:
            never += [escape(rules.form.between + tool.name) for tool in tools]
        begins.append("calls")
    parts = [*(["section"] if trigger else []), *(["special"] if special else [])]
    lines.append(f"parts: ({' | '.join(parts)})* TEXT" if parts else "parts: TEXT")
    if special:
        lines += [f"special: TEXT {special}", f"first_special: FIRST {special}"]
        begins.append("first_special parts")
    without = f" & ~/{ANYTHING}({'|'.join(never)}){ANYTHING}/" if never else ""
    lines += [f"TEXT: /{ANYTHING}/{without}", f"FIRST: /{ANYTHING}/{without} & ~/({'|'.join(first)}){ANYTHING}/"]
    for index, tool in bare:
        head = rf"{_BEGIN}\{{[ \n]*\"name\"[ \n]*:[ \n]*\"{escape(tool.name)}\""
        lines.append(f"bare{index}: /{head}/ {_ARGUMENTS} bare{index}j {_END}")
        lines.append(f"bare{index}j: %json {rules.schema(tool)}")
    return [f"start: {' | '.join(begins)}", *lines, *rules.calls(tools, most=most, loose=True, apart=bool(trigger))]


def _sections(trigger: str, token: int | None, inner: str, never: list[str], first: list[str]) -> list[str]:
    """Text up to the mark of calls, and the calls; ``opened`` is the same at the answer's begin."""
    lines = [f"section: opening {inner}", f"opened: first_opening {inner}"]
    if token is not None:
        return [*lines, f"opening: TEXT <[{token}]>", f"first_opening: FIRST <[{token}]>"]
    opening = f"/{ANYTHING}{escape(trigger)}/" + (f" & ~/{ANYTHING}({'|'.join(never)}){ANYTHING}/" if never else "")
    return [
        *lines,
        "opening[lazy]: OPENING",
        f"OPENING: {opening}",
        "first_opening[lazy]: FIRST_OPENING",
        f"FIRST_OPENING: {opening} & ~/({'|'.join(first)}){ANYTHING}/",
    ]


def _in_channels(rules: CallGrammar, tools: tuple[Tool, ...]) -> list[str]:
    """gpt-oss: messages with headers, of which those to tools hold calls."""
    begin = rules.literal(HARMONY.lead)
    channel, message, end = (rules.literal(mark) for mark in ("<|channel|>", "<|message|>", "<|end|>"))
    constrain = f"({rules.literal('<|constrain|>')})?"
    lines = [
        f"start: ({begin})? turn ({end} {begin} turn)*",
        f"turn: {channel} /(analysis|commentary|final) ?/ {constrain} /(json)?/ {message} /{ANYTHING}/ | called",
        f"called: {' | '.join(f'called{index}' for index in range(len(tools)))}",
    ]
    for index, tool in enumerate(tools):
        name = json.dumps(f"to=functions.{tool.name}")
        head = (
            f'(" " {name} {channel} "commentary" | {channel} "commentary " {name}) " "? {constrain} "json"? {message}'
        )
        lines.append(f"called{index}: {head} called{index}j")
        lines.append(f"called{index}j: %json {rules.schema(tool) if tool.strict else json.dumps({'type': 'object'})}")
    return lines
