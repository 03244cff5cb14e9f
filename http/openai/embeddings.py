"""OpenAI's embeddings: texts or token ids to one vector each."""

import base64
import struct
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from plimsoll.actors.replies import Vectors
from plimsoll.engine.protocol import MAX_INPUTS, EmbedRequest
from plimsoll.errors import InternalError
from plimsoll.http.answer import WholeAnswer
from plimsoll.http.body import refuse
from plimsoll.http.endpoint import AnswerEncoder, Endpoint, RequestContext
from plimsoll.http.known_models import with_embedding_models

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

    model: str = ""
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
    return EmbedRequest(texts=texts, tokens=tokens, dimensions=body.dimensions, truncate=True)


def _is_token(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _rows(vectors: Vectors, *, as_text: bool) -> list[str] | list[tuple[float, ...]]:
    length = vectors.dimensions * _FLOAT_BYTES
    raw = [vectors.data[at : at + length] for at in range(0, len(vectors.data), length)]
    if as_text:
        return [base64.b64encode(row).decode() for row in raw]
    return [struct.unpack(f"<{vectors.dimensions}f", row) for row in raw]


class EmbeddingEncoder(AnswerEncoder):
    """Embeddings, which are never streamed."""

    def __init__(self, context: RequestContext) -> None:
        self._body: Body = context.body

    def whole(self, answers: list[WholeAnswer]) -> dict[str, Any]:
        (answer,) = answers
        if answer.vectors is None:
            raise InternalError(f"{self._body.model} ended without giving vectors")
        rows = _rows(answer.vectors, as_text=self._body.encoding_format == "base64")
        data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
        tokens = answer.usage.prompt_tokens
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": self._body.model, "usage": usage}


EMBEDDINGS = Endpoint(
    api="openai",
    decoder=decoder,
    allowed=ALLOWED,
    prompts=lambda body: [embed_request(body)],
    text="input",
    encoder=EmbeddingEncoder,
    streams=lambda _body: False,
    explained=with_embedding_models,
)
