"""Reranking, as Jina, Cohere and vLLM have it: documents in the order of how well each answers a query."""

import math
import struct
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from plimsoll.engine.protocol import MAX_INPUTS, RerankRequest
from plimsoll.errors import InternalError
from plimsoll.http.answer import WholeAnswer
from plimsoll.http.body import refuse
from plimsoll.http.endpoint import AnswerEncoder, Endpoint, RequestContext
from plimsoll.http.known_models import with_cross_encoders

PATHS = ("/v1/rerank", "/v2/rerank", "/rerank")
_TEXT = {"type": "string", "minLength": 1}
_DOCUMENTS_SCHEMA = {
    "type": "array",
    "minItems": 1,
    "maxItems": MAX_INPUTS,
    "items": {"anyOf": [_TEXT, {"type": "object", "required": ["text"], "properties": {"text": _TEXT}}]},
}
_MOST_TOP = 2**31 - 1
_FLOAT_BYTES = 4


class Body(msgspec.Struct, kw_only=True):
    """Null means the default, and 0 for ``top_n`` all documents; unknown keys are ignored."""

    model: str = ""
    query: Annotated[str, Meta(min_length=1)]
    # Its entries are seen by hand, so that an error names the one that is wrong.
    documents: Annotated[Any, Meta(extra_json_schema=_DOCUMENTS_SCHEMA)]
    top_n: Annotated[int, Meta(ge=0, le=_MOST_TOP)] | None = None
    return_documents: bool | None = None


_DOCUMENTS = f"a list of 1 to {MAX_INPUTS} non-empty strings or objects with such a text"
ALLOWED = {
    "model": "a model's name",
    "query": "a non-empty string",
    "documents": _DOCUMENTS,
    "top_n": "an integer from 0",
    "return_documents": "true or false",
}
decoder = msgspec.json.Decoder(Body)


def rerank_request(body: Body) -> RerankRequest:
    """What the engine gets. Raises ``BadRequest``."""
    given = body.documents
    if not isinstance(given, list) or not given:
        raise refuse("documents", f"must be {_DOCUMENTS}")
    if len(given) > MAX_INPUTS:
        raise refuse("documents", f"has {len(given)} entries, but {MAX_INPUTS} are the most")
    texts: list[str] = []
    for index, one in enumerate(given):
        text = one.get("text") if isinstance(one, dict) else one
        if not (isinstance(text, str) and text):
            raise refuse(f"documents[{index}]", "must be a non-empty string, or an object with such a text")
        texts.append(text)
    return RerankRequest(body.query, texts)


class RerankEncoder(AnswerEncoder):
    """The results, the best first; they are never streamed."""

    def __init__(self, context: RequestContext) -> None:
        self._id = f"rerank-{context.id}"
        self._body: Body = context.body
        (self._request,) = context.prompts

    def whole(self, answers: list[WholeAnswer]) -> dict[str, Any]:
        (answer,) = answers
        documents = self._request.documents if isinstance(self._request, RerankRequest) else []
        if answer.vectors is None or len(answer.vectors.data) != _FLOAT_BYTES * len(documents):
            raise InternalError(f"{self._body.model} ended without giving scores")
        logits = struct.unpack(f"<{len(documents)}f", answer.vectors.data)
        # Documents of one score stay in the order that they were sent in.
        order = sorted(range(len(documents)), key=lambda index: -logits[index])
        results: list[dict[str, Any]] = [
            {"index": index, "relevance_score": _sigmoid(logits[index])} for index in order[: self._body.top_n or None]
        ]
        if self._body.return_documents:
            for result in results:
                result["document"] = {"text": documents[result["index"]]}
        tokens = answer.usage.prompt_tokens
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"id": self._id, "model": self._body.model, "results": results, "usage": usage}


def _sigmoid(logit: float) -> float:
    """From 0 to 1; of both forms the one whose power does not overflow."""
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    power = math.exp(logit)
    return power / (1 + power)


RERANK = Endpoint(
    api="openai",
    decoder=decoder,
    allowed=ALLOWED,
    prompts=lambda body: [rerank_request(body)],
    text="documents",
    encoder=RerankEncoder,
    streams=lambda _body: False,
    explained=with_cross_encoders,
)
