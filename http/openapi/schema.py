"""From declared operations to an OpenAPI 3.1 document. The schemas are those of the structs, written nowhere else."""

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

import msgspec

JSON, SSE = "application/json", "text/event-stream"
_NAME: Mapping[str, Any] = MappingProxyType({"type": "string", "minLength": 1})
_REF = "#/components/schemas/{name}"
_COMMON = (400, 401, 403, 404, 405, 408, 413, 415, 417, 429, 431, 500, 503)
_RETRIES = frozenset({429, 503})
_RETRY_AFTER = {"Retry-After": {"description": "Seconds; where trying again can help.", "schema": {"type": "integer"}}}
_NEVER = {"x-should-retry": {"description": "What official clients go by.", "schema": {"const": "false"}}}


class Told(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of an answer: the fields that stand there and no others."""


class Content(msgspec.Struct, frozen=True):
    """One form of an answer. Of a stream ``types`` are what its events or lines hold; no types: any text.

    ``last`` is the data of a stream's last event, where that is no JSON.
    """

    media: str = JSON
    types: tuple[Any, ...] = ()
    last: str | None = None


class Parameter(msgspec.Struct, frozen=True):
    """In the path where the path names it, else in the query."""

    name: str
    about: str
    schema: Mapping[str, Any] = _NAME
    required: bool = False


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One path and what it answers; ``error`` is the body of every status that is not in ``answers``.

    ``errors`` are those it has beside the ones that all have. ``public`` needs no key.
    """

    path: str
    about: str
    tag: str
    error: type
    methods: tuple[str, ...] = ("get", "head")
    answers: Mapping[int, tuple[Content, ...]]
    errors: tuple[int, ...] = ()
    body: type | None = None
    body_needed: bool = True
    example: dict[str, Any] | None = None
    parameters: tuple[Parameter, ...] = ()
    public: bool = False


def json_of(*types: Any) -> tuple[Content, ...]:
    """An answer in JSON."""
    return (Content(JSON, types),)


def document(operations: Sequence[Operation], info: Mapping[str, Any]) -> dict[str, Any]:
    """The whole document, its components shared by all operations."""
    schemas = _Schemas(operations)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = paths.setdefault(operation.path, {})
        for method in operation.methods:
            path[method] = _operation(operation, method, schemas)
    return {
        "openapi": "3.1.0",
        "info": dict(info),
        "tags": [{"name": tag} for tag in dict.fromkeys(operation.tag for operation in operations)],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "One of the keys of `access.keys`."},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same."},
            },
        },
        # The empty one: without keys in the configuration none is needed.
        "security": [{}, {"bearer": []}, {"key": []}],
    }


class _Schemas:
    """References to the components; structs of one name are told apart by where they are."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        used = [kind for operation in operations for kind in _types(operation)]
        self._types = list(dict.fromkeys(used))
        raw = msgspec.json.encode(msgspec.json.schema_components(self._types, ref_template=_REF))
        named = re.sub(rb"plimsoll\.(?:http\.)?((?:\w+\.)+)(\w+)", _short, raw)
        self._refs, self.components = msgspec.json.decode(named)

    def of(self, types: Sequence[Any]) -> dict[str, Any]:
        refs = [self._refs[self._types.index(kind)] for kind in types]
        return refs[0] if len(refs) == 1 else {"anyOf": refs}


def _short(found: "re.Match[bytes]") -> bytes:
    """``plimsoll.http.openai.responses.routes.Body`` is OpenaiResponsesBody."""
    place, name = found[1].decode().removesuffix("routes."), found[2].decode()
    return ("".join(part.capitalize() for part in re.split(r"[._]", place)) + name).encode()


def _types(operation: Operation) -> list[Any]:
    answers = [kind for contents in operation.answers.values() for content in contents for kind in content.types]
    return [*([operation.body] if operation.body else []), *answers, operation.error]


def _operation(operation: Operation, method: str, schemas: _Schemas) -> dict[str, Any]:
    name = re.sub(r"\W+", "_", operation.path).strip("_") or "root"
    told: dict[str, Any] = {
        "operationId": f"{method}_{name}",
        "summary": operation.about,
        "tags": [operation.tag],
        "responses": _responses(operation, schemas, bodies=method != "head"),
    }
    if operation.parameters:
        told["parameters"] = [_parameter(one, operation.path) for one in operation.parameters]
    if operation.body and method != "head":
        content: dict[str, Any] = {"schema": schemas.of([operation.body])}
        if operation.example:
            content["example"] = operation.example
        told["requestBody"] = {"required": operation.body_needed, "content": {JSON: content}}
    if operation.public:
        told["security"] = []
    return told


def _parameter(one: Parameter, path: str) -> dict[str, Any]:
    in_path = "{" + one.name + "}" in path
    where = "path" if in_path else "query"
    return {
        "name": one.name,
        "in": where,
        "required": in_path or one.required,
        "description": one.about,
        "schema": dict(one.schema),
    }


def _responses(operation: Operation, schemas: _Schemas, *, bodies: bool) -> dict[str, Any]:
    contents = {status: (Content(JSON, (operation.error,)),) for status in (*_COMMON, *operation.errors)}
    answers = contents | dict(operation.answers)
    return {str(status): _response(status, answers[status], schemas, bodies=bodies) for status in sorted(answers)}


def _response(status: int, contents: tuple[Content, ...], schemas: _Schemas, *, bodies: bool) -> dict[str, Any]:
    told: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if bodies and contents:
        told["content"] = {one.media: {"schema": _schema(one, schemas)} for one in contents}
    if status in _RETRIES:
        told["headers"] = _RETRY_AFTER
    elif status == HTTPStatus.INSUFFICIENT_STORAGE:
        told["headers"] = _NEVER
    return told


def _schema(content: Content, schemas: _Schemas) -> dict[str, Any]:
    if not content.types:
        return {"type": "string"}
    told = schemas.of(content.types)
    if content.media != SSE:
        return told
    # As OpenAPI 3.2 has it, where an event is an object whose data is text that holds JSON.
    data: dict[str, Any] = {"type": "string", "contentMediaType": JSON, "contentSchema": told}
    if content.last:
        data = {"anyOf": [{"const": content.last}, data]}
    properties = {"event": {"type": "string"}, "data": data, "id": {"type": "string"}}
    return {"type": "object", "properties": properties, "required": ["data"]}
