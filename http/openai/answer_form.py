"""The form of an answer, as OpenAI's chat completions and responses ask for it, and as vLLM and llama.cpp do."""

from typing import Any, Literal

import msgspec

from plimsoll.engine.protocol import Format
from plimsoll.http.body import check_free, refuse
from plimsoll.http.openai.params import WithChoices

_JSON = "a JSON schema, as an object or as text"
_ONLY = "only JSON schemas are followed: use response_format for one, or leave it out"


class JsonSchema(msgspec.Struct):
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(msgspec.Struct):
    """The format of a chat completion; llama.cpp's clients put a schema beside ``json_object``."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema: dict[str, Any] | None = None


class TextFormat(msgspec.Struct):
    """The format of a response: the schema's fields beside the type."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class WithForm(WithChoices, kw_only=True):
    """What the answer has to look like, as OpenAI's, vLLM's and llama.cpp's clients say it."""

    response_format: ResponseFormat | None = None
    guided_json: Any = None
    guided_choice: Any = None
    guided_regex: Any = None
    guided_grammar: Any = None
    grammar: Any = None
    structured_outputs: Any = None


ALLOWED = {
    "response_format": 'an object like {"type": "text"}',
    "response_format.type": "text, json_object or json_schema",
    "response_format.json_schema": 'an object like {"name": "x", "schema": {}}',
    "response_format.json_schema.schema": "a JSON schema",
    "response_format.schema": "a JSON schema",
    "text.format.type": "text, json_object or json_schema",
    "text.format.schema": "a JSON schema",
}


def form_of(body: WithForm) -> Format | None:
    """The ``Format`` of a ``ChatRequest``. Raises ``BadRequest`` for forms that can't be followed, by their name."""
    for name in ("guided_choice", "guided_regex", "guided_grammar", "grammar"):
        if getattr(body, name):
            raise refuse(name, f"can't be followed here: {_ONLY}")
    if body.guided_json:
        return Format(_schema(body.guided_json, "guided_json"))
    if body.structured_outputs:
        return _structured(body.structured_outputs)
    given = body.response_format
    if given is None:
        return None
    if given.type == "json_object" and given.schema is not None:
        check_free(given.schema, "response_format.schema")
        return Format(given.schema)
    schema = given.json_schema
    param = "response_format.json_schema" + (".schema" if schema else "")
    return answer_format(given.type, schema.schema if schema else None, param)


def answer_format(kind: str, schema: dict[str, Any] | None, param: str) -> Format | None:
    """The ``Format`` of a ``ChatRequest``. Raises ``BadRequest``, naming ``param``, for a schema that is not there."""
    if kind == "text":
        return None
    if kind == "json_schema" and schema is None:
        raise refuse(param, "is missing, but must be a JSON schema")
    check_free(schema, param)
    return Format(schema if kind == "json_schema" else None)


def _structured(given: Any) -> Format | None:
    if not isinstance(given, dict):
        raise refuse("structured_outputs", 'must be an object like {"json": {}}')
    for name, value in given.items():
        if value and name in ("choice", "regex", "grammar", "structural_tag"):
            raise refuse(f"structured_outputs.{name}", f"can't be followed here: {_ONLY}")
    if given.get("json"):
        return Format(_schema(given["json"], "structured_outputs.json"))
    return Format() if given.get("json_object") else None


def _schema(given: Any, param: str) -> dict[str, Any]:
    if isinstance(given, str):
        try:
            given = msgspec.json.decode(given)
        except (msgspec.DecodeError, RecursionError):
            raise refuse(param, f"is no JSON, but must be {_JSON}") from None
    if not isinstance(given, dict):
        raise refuse(param, f"must be {_JSON}")
    check_free(given, param)
    return given
