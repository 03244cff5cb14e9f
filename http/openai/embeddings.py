"""OpenAI's embeddings: texts or token ids to one vector each."""

import base64
import struct
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from sanic import HTTPResponse

from plimsoll.actors.messages import Vectors
from plimsoll.engine.protocol import MAX_INPUTS, EmbedRequest
from plimsoll.errors import InternalError
from plimsoll.http.body import read, refuse
from plimsoll.http.errors import respond
from plimsoll.http.front import AnyRequest, App, Front
from plimsoll.http.limits.request import check_embed
from plimsoll.http.stream import Answer
from plimsoll.http.whole import gather

_MAX_IDS = 1_000_000
_FLOAT_BYTES = 4
_IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}}
_TEXT = {"type": "string", "minLength": 1}
_INPUT_SCHEMA = {
    "anyOf": [
        _TEXT,
        _IDS,
        *({"type": "array", "minItems": 1, "maxItems": MAX_INPUTS, "items": one} for one in (_TEXT, _IDS)),
    ]
}


class Body(msgspec.Struct, kw_only=True):
    """Null means the default; unknown keys are ignored."""

    model: Annotated[str, Meta(min_length=1)]
    # Which of its four forms it has is seen by hand: msgspec does not tell list[str] from list[int].
    input: Annotated[Any, Meta(extra_json_schema=_INPUT_SCHEMA)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    user: str | None = None


_INPUT = f"a non-empty string, a list of 1 to {MAX_INPUTS} of them, or token ids in the place of each string"
ALLOWED = {
    "model": "a model's name",
    "input": _INPUT,
    "encoding_format": "float or base64",
    "dimensions": "an integer from 1",
}
decoder = msgspec.json.Decoder(Body)


def add_routes(app: App, front: Front) -> None:
    """Register this module's endpoint."""
    api = _Embeddings(front)
    app.add_route(api.embeddings, "/v1/embeddings", methods=["POST"], name="embeddings")


class _Embeddings:
    def __init__(self, front: Front) -> None:
        self._front = front

    async def embeddings(self, request: AnyRequest) -> HTTPResponse:
        body: Body = read(request, decoder, ALLOWED)
        asked = check_embed(embed_request(body), self._front.config.limits)
        self._front.catalog.find(body.model)
        with self._front.running():
            record = self._front.recorder.begin("openai", body.model)
            (whole,) = await gather(Answer(self._front.supervisor, body.model, asked, record))
        if whole.vectors is None:
            raise InternalError(f"{body.model} ended without giving vectors")
        rows = _rows(whole.vectors, as_text=body.encoding_format == "base64")
        data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
        tokens = whole.usage.prompt_tokens
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return respond(200, {"object": "list", "data": data, "model": body.model, "usage": usage})


def embed_request(body: Body) -> EmbedRequest:
    """What the engine gets. Raises ``BadRequest``."""
    given = body.input
    texts: list[str] = []
    tokens: list[list[int]] = []
    if isinstance(given, str):
        texts = [given]
    elif isinstance(given, list) and given and isinstance(given[0], str):
        texts = given
    elif isinstance(given, list) and given:
        tokens = given if isinstance(given[0], list) else [given]
    else:
        raise refuse("input", f"must be {_INPUT}")
    if len(texts or tokens) > MAX_INPUTS:
        raise refuse("input", f"has {len(texts or tokens)} entries, but {MAX_INPUTS} are the most")
    if (ids := sum(len(one) for one in tokens if isinstance(one, list))) > _MAX_IDS:
        raise refuse("input", f"has {ids} token ids, but {_MAX_IDS} are the most")
    many = isinstance(given, list) and isinstance(given[0], str | list)
    for index, one in enumerate(texts or tokens):
        where = f"input[{index}]" if many else "input"
        if texts and not (isinstance(one, str) and one):
            raise refuse(where, "must be a non-empty string")
        if tokens and not (isinstance(one, list) and one and all(_is_token(token) for token in one)):
            raise refuse(where, "must be one or more token ids")
    return EmbedRequest(texts=texts, tokens=tokens, dimensions=body.dimensions)


def _is_token(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _rows(vectors: Vectors, *, as_text: bool) -> list[str] | list[tuple[float, ...]]:
    length = vectors.dimensions * _FLOAT_BYTES
    raw = [vectors.data[at : at + length] for at in range(0, len(vectors.data), length)]
    if as_text:
        return [base64.b64encode(row).decode() for row in raw]
    return [struct.unpack(f"<{vectors.dimensions}f", row) for row in raw]
