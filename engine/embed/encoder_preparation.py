"""The inputs of a request, as rows of tokens that the model of an ``EmbeddingEngine`` takes, or a refusal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from plimsoll.engine.embed.encoders import CrossEncoder, Encoder, Row
from plimsoll.engine.prompt_bounds import beginning
from plimsoll.engine.protocol import MAX_INPUTS, EmbedRequest, Request, RerankRequest
from plimsoll.errors import BadRequest, ContextTooLong

_SPARE_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Prepared:
    """``cut`` vectors have fewer ``dimensions`` than the model's. ``param`` is what the API calls the inputs."""

    rows: list[Row]
    dimensions: int
    cut: bool = False
    param: Literal["input", "documents"] = "input"


def prepare(encoder: Encoder, request: Request) -> Prepared:
    """Raises ``BadRequest`` for what the model does not take."""
    if isinstance(encoder, CrossEncoder):
        return _prepare_pairs(encoder, request)
    if isinstance(request, RerankRequest):
        raise BadRequest("This model makes embeddings and can't rerank: use a cross encoder.", param="model")
    if not isinstance(request, EmbedRequest):
        raise BadRequest("This model makes embeddings and can't chat: use a chat model.", param="model")
    _check_count(request.texts or request.tokens, "inputs", "input")
    dimensions = encoder.dimensions if request.dimensions is None else request.dimensions
    if not 0 < dimensions <= encoder.dimensions:
        raise BadRequest(
            f"{dimensions} dimensions are not allowed: the model's vectors have {encoder.dimensions}, and they can "
            "be cut to any number from 1 on.",
            param="dimensions",
        )
    rows = [_tokens(encoder, number, text, truncate=request.truncate) for number, text in enumerate(request.texts, 1)]
    rows = rows or request.tokens
    if request.truncate:
        rows = [_cut(encoder, row) for row in rows]
    for number, row in enumerate(rows, 1):
        _check(encoder, number, row)
    return Prepared([Row(row) for row in rows], dimensions, cut=dimensions < encoder.dimensions)


def _prepare_pairs(encoder: CrossEncoder, request: Request) -> Prepared:
    if not isinstance(request, RerankRequest):
        embeds = isinstance(request, EmbedRequest)
        what = "makes no embeddings: use an embedding model" if embeds else "can't chat: use a chat model"
        raise BadRequest(f"This model reranks documents and {what}.", param="model")
    _check_count(request.documents, "documents", "documents")
    most = encoder.info.context + _SPARE_TOKENS
    count = _counter(encoder)
    query = beginning(count, request.query, most)
    rows = list(encoder.pairs(query, (beginning(count, one, most) for one in request.documents)))
    for number, row in enumerate(rows, 1):
        if not _are_known(encoder, row.tokens):
            raise BadRequest(
                f"Document {number} or the query has a token that the model's weights do not know.", param="documents"
            )
    return Prepared(rows, encoder.dimensions, param="documents")


def _check_count(inputs: Sequence[object], what: str, param: str) -> None:
    if not 0 < len(inputs) <= MAX_INPUTS:
        raise BadRequest(f"The request has {len(inputs)} {what}; expected 1 to {MAX_INPUTS}.", param=param)


def _counter(encoder: Encoder) -> Callable[[str], int]:
    return lambda text: len(encoder.tokenize(text))


def _tokens(encoder: Encoder, number: int, text: str, *, truncate: bool) -> list[int]:
    """Raises ``ContextTooLong`` for a text that is far too long before all of it is read."""
    most = encoder.info.context
    # Some more than is kept: the last tokens of a part are others than those of the whole.
    part = beginning(_counter(encoder), text, most + _SPARE_TOKENS)
    if len(part) < len(text) and not truncate:
        raise ContextTooLong(
            f"Input {number} has {len(text)} characters, which are more than the {most} tokens that this model "
            "takes: shorten or split it.",
            param="input",
        )
    return encoder.tokenize(part)


def _cut(encoder: Encoder, row: list[int]) -> list[int]:
    """As long as the model takes; the special token at the end, which it may pool, is kept."""
    most = encoder.info.context
    if len(row) <= most:
        return row
    empty = encoder.tokenize("")
    closing = row[-1:] if empty[-1:] == row[-1:] else []
    return row[: most - len(closing)] + closing


def _check(encoder: Encoder, number: int, row: list[int]) -> None:
    most = encoder.info.context
    if not row:
        raise BadRequest(f"Input {number} is empty.", param="input")
    if len(row) > most:
        raise ContextTooLong(
            f"Input {number} has {len(row)} tokens, and this model takes at most {most}: shorten or split it.",
            param="input",
        )
    if not _are_known(encoder, row):
        last = encoder.info.vocab_size - 1
        raise BadRequest(f"Input {number} has a token id outside of 0 to {last}.", param="input")


def _are_known(encoder: Encoder, tokens: list[int]) -> bool:
    """Whether the model's table has every token: MLX reads beyond it for others, without a word."""
    vocab_size = encoder.info.vocab_size
    return all(0 <= token < vocab_size for token in tokens)
