"""Values of calls that are written as text: what type they have is said by the tool's schema."""

import json
from collections.abc import Iterable
from typing import Any

from plimsoll.engine.dialect.mending import NotJson, mended
from plimsoll.engine.protocol import Tool

_TRUTHS = {"true": True, "false": False}
_MOST_REFERENCES = 16


def properties(tools: Iterable[Tool], name: str) -> dict[str, Any]:
    """The parameters of the tool ``name`` with their types: key to the set of JSON types, or None where all are."""
    for tool in tools:
        if tool.name == name:
            given = tool.parameters.get("properties")
            if not isinstance(given, dict):
                return {}
            return {key: types(schema, tool.parameters) for key, schema in given.items()}
    return {}


def types(schema: Any, root: dict[str, Any], depth: int = 0) -> frozenset[str] | None:  # noqa: PLR0911 - a list of cases
    """The JSON types that a schema names, through references and unions; None where it names none."""
    if not isinstance(schema, dict) or depth > _MOST_REFERENCES:
        return None
    if isinstance(reference := schema.get("$ref"), str):
        return types(referred(reference, root), root, depth + 1)
    named = schema.get("type")
    if isinstance(named, str):
        return frozenset([named])
    if isinstance(named, list):
        return frozenset(one for one in named if isinstance(one, str)) or None
    if isinstance(values := schema.get("enum"), list) or "const" in schema:
        return frozenset(_type(value) for value in (values if isinstance(values, list) else [schema["const"]]))
    for union in ("anyOf", "oneOf"):
        if isinstance(members := schema.get(union), list):
            each = [types(member, root, depth + 1) for member in members]
            named_by_all = [kind for one in each if one for kind in one]
            return None if None in each else frozenset(named_by_all)
    if isinstance(members := schema.get("allOf"), list):
        return next((found for member in members if (found := types(member, root, depth + 1))), None)
    return frozenset(["object"]) if "properties" in schema else None


def is_text(kinds: frozenset[str] | None) -> bool:
    """Whether the value can only be a string, so that it may be passed on while it comes."""
    return kinds == frozenset(["string"])


def read_value(text: str, kinds: frozenset[str] | None) -> Any:  # noqa: PLR0911 - a list of cases
    """The value that ``text`` means for a parameter of these types; the text itself where it can't be any of them."""
    if is_text(kinds):
        return text
    word = text.strip()
    if word in ("null", "None"):
        return None if kinds is None or "null" in kinds or "string" not in kinds else text
    if kinds is not None and "string" in kinds:
        return _maybe(text, word, kinds - {"string", "null"})
    if (truth := _TRUTHS.get(word.lower())) is not None and (kinds is None or "boolean" in kinds):
        return truth
    try:
        value = json.loads(mended(word, python=True), strict=False) if word and _structured(word, kinds) else text
    except (NotJson, ValueError, RecursionError):
        return text
    if isinstance(value, float) and value.is_integer() and kinds is not None and "number" not in kinds:
        return int(value)
    return value


def _maybe(text: str, word: str, others: frozenset[str]) -> Any:
    """A string, unless it is written exactly as one of the other types would be."""
    if not others:
        return text
    try:
        value = json.loads(word)
    except (ValueError, RecursionError):
        return text
    kind = _type(value)
    fits = kind in others or (kind == "integer" and "number" in others)
    exact = kind in ("object", "array") or json.dumps(value) == word
    return value if fits and exact else text


def _structured(word: str, kinds: frozenset[str] | None) -> bool:
    """Whether the text looks like JSON: words that are no string of JSON's are not to become one."""
    if word[0] in "{[":
        return kinds is None or bool(kinds & {"object", "array"}) or not kinds
    if word[0] == "(":
        return kinds is not None and "array" in kinds
    try:
        float(word)
    except ValueError:
        return word[0] == '"' and kinds is None and _is_string(word)
    return kinds is None or bool(kinds & {"integer", "number"})


def _is_string(word: str) -> bool:
    try:
        return isinstance(json.loads(word), str)
    except ValueError:
        return False


def referred(reference: str, root: dict[str, Any]) -> Any:
    """What a schema's ``$ref`` stands for: a JSON pointer (RFC 6901) into ``root``; None where that leads nowhere."""
    if not reference.startswith("#"):
        return None
    found: Any = root
    for step in reference[1:].strip("/").split("/"):
        key = step.replace("~1", "/").replace("~0", "~")
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _type(value: Any) -> str:
    if value is None:
        return "null"
    for kind, name in ((bool, "boolean"), (str, "string"), (int, "integer"), (float, "number"), (dict, "object")):
        if isinstance(value, kind):
            return name
    return "array"
