"""Writes the grammar of calls in a family's own form, in llguidance's dialect of Lark."""

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from plimsoll.engine.dialect.call_form import ID, KEY, NAME, NUMBER, CallForm, Keyed, text_end
from plimsoll.engine.dialect.values import referred, types
from plimsoll.engine.protocol import Tool

_ANY_KEY = r"/[a-zA-Z_][a-zA-Z0-9_.\-]*/"
_FILLERS = {ID: "/[a-zA-Z0-9]{9}/", NUMBER: "/[0-9]{1,2}/", KEY: _ANY_KEY}
_TAG = re.compile(r"<[^<>\s]*>?|\[[A-Z_]+\]")
_MOST_REFERENCES = 8

Schema = Callable[[Any, str], str]
"""A schema as JSON on one line, and which tool it is of; raises where it is too large."""


class CallGrammar:
    """The rules for calls of ``tools``, written as ``form`` says.

    ``special`` gives the number of each token that has no text of its own; ``schema`` writes what JSON must follow.
    Rules: ``calls`` is all of an answer's calls, ``call`` one from its name to its arguments' end.
    """

    def __init__(self, form: CallForm, special: dict[str, int], schema: Schema) -> None:
        self.form = form
        self._special = special
        self._schema = schema
        self._split = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")

    def calls(self, tools: tuple[Tool, ...], *, most: int, loose: bool = False, apart: bool = True) -> list[str]:
        """The rules; where ``loose`` is set the arguments of tools that are not strict are free.

        Without ``apart`` the first call's begin and name are one terminal, so that a text which begins like it can
        be told from it.
        """
        form = self.form
        # What a further call and the end have in common stands apart: terminals are read as far as they go.
        shared = self._shared(form.between or form.end, form.end)
        common, end = self.literal(form.end[:shared]), self.literal(form.end[shared:])
        more = ""
        if form.between is not None and most > 1:
            more = f" ({self.literal(form.between[shared:])} call {common}){{0,{most - 1}}}"
        rest = f"{common}{more} {end}".strip()
        first = [f"calls: {self.literal(form.begin)} inner"]
        if not apart:
            first = [f"calls: first_call {rest}"]
            first.append(f"first_call: {' | '.join(f'first{index}' for index in range(len(tools)))}")
        lines = [
            *first,
            f"inner: call {rest}",
            f"call: {' | '.join(f'call{index}' for index in range(len(tools)))}",
        ]
        for index, tool in enumerate(tools):
            free = loose and not tool.strict
            head = f"call{index}: {json.dumps(tool.name)} {self.literal(form.gap, tool.name)} arguments{index}"
            if not apart:
                joined = self.before_token(form.gap)
                begin, rest = self.literal(form.begin + tool.name + joined), form.gap[len(joined) :]
                lines.append(f"first{index}: {begin} {self.literal(rest, tool.name)} arguments{index}")
            lines += [head, *self._arguments(index, tool, {} if free else tool.parameters)]
        return lines

    def literal(self, text: str, name: str = "", key: str = "") -> str:
        """The text as terminals; tokens without a text by their numbers."""
        text = text.replace(NAME, name).replace(KEY, key or KEY)
        found, at = [], 0
        for match in self._split.finditer(text):
            found += [*self._plain(text[at : match.start()]), f"<[{self._special[match[0]]}]>"]
            at = match.end()
        return " ".join([*found, *self._plain(text[at:])])

    def trigger(self) -> tuple[str, str]:
        """The mark that begins calls, and what follows up to the first name; no mark where there is none."""
        begin = self.form.begin
        match = self._split.match(begin) or _TAG.match(begin)
        return (match[0], begin[match.end() :]) if match else ("", begin)

    def before_token(self, text: str) -> str:
        """The text up to the first token without a text, or to what differs from call to call."""
        match = re.search(f"{self._split.pattern}|[{NAME}{ID}{NUMBER}]", text)
        return text[: match.start()] if match else text

    def token(self, mark: str) -> int | None:
        """The mark's number, if it has no text of its own."""
        return self._special.get(mark)

    def other_tokens(self, barred: "set[int | None]") -> str:
        """All tokens without a text but the barred ones, as one terminal; empty where there are none."""
        numbers = sorted(set(self._special.values()) - barred)
        ranges: list[list[int]] = []
        for number in numbers:
            if ranges and ranges[-1][1] == number - 1:
                ranges[-1][1] = number
            else:
                ranges.append([number, number])
        written = ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)
        return f"<[{written}]>" if written else ""

    def schema(self, tool: Tool) -> str:
        """The schema of a tool's arguments, on one line."""
        return self._schema({"type": "object", **tool.parameters}, f"The parameters of tool {tool.name}")

    def _shared(self, one: str, other: str) -> int:
        """How long both begin alike, without cutting a token that has no text."""
        least = min(len(one), len(other))
        length = next((at for at in range(least) if one[at] != other[at]), least)
        for text in (one, other):
            for mark in self._split.finditer(text):
                if mark.start() < length < mark.end():
                    length = mark.start()
        return length

    def _plain(self, text: str) -> Iterable[str]:
        pieces = [piece for piece in re.split(f"([{ID}{NUMBER}{KEY}])", text) if piece]
        return [_FILLERS.get(piece) or json.dumps(piece) for piece in pieces]

    def _arguments(self, index: int, tool: Tool, parameters: dict[str, Any]) -> list[str]:
        name, keyed, whole = f"arguments{index}", self.form.keyed, {"type": "object", **parameters}
        what = f"The parameters of tool {tool.name}"
        if keyed is None:
            return [f"{name}: %json {self._schema(whole, what)}"]
        root = _resolved(whole, whole)
        known = root.get("properties")
        if not isinstance(known, dict) or not known:
            return self._free_arguments(name, keyed, closed=root.get("additionalProperties") is False)
        needed = root.get("required") or []
        lines, first, tails = [], [], []
        optional = True  # whether all keys so far may be left out
        for number, (key, schema) in enumerate(known.items()):
            rule, rest = f"{name}v{number}", f"{name}t{number + 1}"
            lines += self._value(rule, key, schema, root, what)
            following = f"{self.literal(keyed.following)} {rule} {rest}"
            tails.append(f"{name}t{number}: {following}" + ("" if key in needed else f" | {rest}"))
            if optional:
                first.append(f"{self.literal(keyed.first)} {rule} {rest}")
            optional = optional and key not in needed
        # A call without arguments where the form has none begins with any of them.
        alternatives = [*first, '""'] if optional and keyed.empty else first
        return [f"{name}: {' | '.join(alternatives)}", *lines, *tails[1:], f'{name}t{len(known)}: ""']

    def _free_arguments(self, name: str, keyed: Keyed, *, closed: bool) -> list[str]:
        """Any keys with any values; ``closed`` where there may be none."""
        if closed:
            return [f'{name}: ""']
        first, following = self.literal(keyed.first), self.literal(keyed.following)
        lines = [f"{name}: ({first} {name}p ({following} {name}p)*)?", f"{name}k: {_ANY_KEY}"]
        if keyed.quoted:
            closed_by = self.literal(keyed.close)
            return [*lines, f"{name}p: {name}k {self.literal(keyed.open)} {name}v {closed_by}", f"{name}v: %json {{}}"]
        pair = f"{name}p: {name}k {self.literal(keyed.text_open)} {name}v"
        if keyed.open != keyed.text_open:
            pair += f" | {name}k {self.literal(keyed.open)} {name}j {self.literal(keyed.close)}\n{name}j: %json {{}}"
        return [*lines, pair, *self._text(f"{name}v", keyed, "")]

    def _value(self, rule: str, key: str, schema: Any, root: dict[str, Any], what: str) -> list[str]:
        """A key with its value and what closes it."""
        keyed = self.form.keyed
        assert keyed is not None  # noqa: S101 - else the arguments have no keys of their own
        head = f"{rule}: {json.dumps(key)}"
        kinds = types(schema, root)
        open_, closed = self.literal(keyed.open, key=key), self.literal(keyed.close, key=key)
        if not keyed.quoted and (kinds is None or "string" in kinds):
            text_open = self.literal(keyed.text_open, key=key)
            values = _values(schema, root)
            if values is None:
                limits = _resolved(schema, root) if kinds == frozenset(["string"]) else {}
                return [f"{head} {text_open} {rule}x", *self._text(f"{rule}x", keyed, key, limits)]
            texts = [json.dumps(value) for value in values if isinstance(value, str)]
            others = [json.dumps(json.dumps(value)) for value in values if not isinstance(value, str)]
            ways = [f"{text_open} ({' | '.join(texts)}) {self.literal(keyed.text_close, key=key)}"] if texts else []
            if others:
                ways.append(f"{open_} ({' | '.join(others)}) {closed}")
            return [f"{head} ({' | '.join(ways)})"]
        inner = schema if isinstance(schema, dict) else {}
        shared = {name: root[name] for name in ("$defs", "definitions") if name in root}
        return [f"{head} {open_} {rule}j {closed}", f"{rule}j: %json {self._schema({**shared, **inner}, what)}"]

    def _text(self, rule: str, keyed: Keyed, key: str, limits: dict[str, Any] | None = None) -> list[str]:
        """Any text that ``limits`` (a schema's) allow, with what closes it."""
        close = keyed.text_close
        end = text_end(close, self._special)
        before, _, after = close.partition(end)
        terminal, rest = rule.upper(), self.literal(after, key=key)
        body = f"/{ANYTHING}/"
        bounds = [f"/{pattern}/" for pattern in _patterns(limits or {})]
        if end in self._special:
            lines = [f"{rule}: {terminal} {self.literal(before)} {self.literal(end)} {rest}"]
            return [*lines, f"{terminal}: {' & '.join(bounds) or body}"]
        # Readers take a line that begins like the next key for it, even where the value's end is missing.
        opening = _TAG.search(keyed.following) or _TAG.search(after + keyed.following)
        stops = [escape(end), *([r"\n" + escape(opening[0].rstrip("=>"))] if opening else [])]
        free = f"~/{ANYTHING}({'|'.join(stops)}){ANYTHING}/"
        closing = (f" {json.dumps(before)}" if bounds and before else "") + f" {json.dumps(end)}"
        return [
            f"{rule}: {rule}t {rest}",
            f"{rule}t[lazy]: {terminal}",
            f"{terminal}: {terminal}B{closing}",
            f"{terminal}B: {' & '.join([*(bounds or [body]), free])}",
        ]


ANYTHING = "(?s:.*)"


def escape(text: str) -> str:
    """The text as a regular expression between slashes."""
    return re.sub(r"([\\.+*?()|\[\]{}^$/])", r"\\\1", text).replace("\n", "\\n")


def _patterns(limits: dict[str, Any]) -> list[str]:
    """What a schema asks of a text, as regular expressions that all of it has to match."""
    found = []
    least, most = limits.get("minLength"), limits.get("maxLength")
    if least is not None or most is not None:
        found.append(f"(?s:.{{{least or 0},{'' if most is None else most}}})")
    if isinstance(pattern := limits.get("pattern"), str):
        begin = "" if pattern.startswith("^") else ANYTHING
        end = "" if pattern.endswith("$") and not pattern.endswith("\\$") else ANYTHING
        inner = pattern.removeprefix("^")
        inner = inner if end else inner.removesuffix("$")
        found.append(f"{begin}({re.sub(r'(?<!' + chr(92) * 2 + ')/', chr(92) * 2 + '/', inner)}){end}")
    return found


def _resolved(schema: Any, root: dict[str, Any]) -> dict[str, Any]:
    """The schema without references and allOf at its top."""
    for _ in range(_MOST_REFERENCES):
        if not isinstance(schema, dict) or not isinstance(reference := schema.get("$ref"), str):
            break
        target = referred(reference, root)
        beside = {key: schema[key] for key in schema if key != "$ref"}
        schema = {**(target if isinstance(target, dict) else {}), **beside}
    if not isinstance(schema, dict):
        return {}
    found = dict(schema)
    for member in found.pop("allOf", None) or []:
        inner = _resolved(member, root)
        for key in ("properties", "required"):
            if key in inner and key in found:
                both = (found[key], inner[key])
                merged = {**both[0], **both[1]} if key == "properties" else [*both[0], *both[1]]
                inner = {**inner, key: merged}
        found |= inner
    return found


def _values(schema: Any, root: dict[str, Any], depth: int = 0) -> list[Any] | None:
    """All values of a schema that allows but a few, or None."""
    known = _resolved(schema, root)
    if "const" in known:
        return [known["const"]]
    if isinstance(listed := known.get("enum"), list):
        return list(listed)
    for union in ("anyOf", "oneOf"):
        if isinstance(members := known.get(union), list) and depth < _MOST_REFERENCES:
            each = [_values(member, root, depth + 1) for member in members]
            return None if None in each else [value for values in each for value in values or []]
    return [None] if known.get("type") == "null" else None
