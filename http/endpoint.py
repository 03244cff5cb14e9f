"""The one way in which a model answers a request over HTTP; each endpoint of each API is a small value beside it.

``answer`` takes every such request the same way: body, prompts, sizes, model, Supervisor, stream or whole answer. What
differs between APIs is an ``Endpoint`` (how its requests are read) and its ``AnswerEncoder`` (how its answers are
written).
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import msgspec
from sanic import HTTPResponse

from plimsoll.actors.messages import KeepAlive
from plimsoll.actors.replies import Waiting
from plimsoll.catalog.entries import CatalogModel
from plimsoll.engine.protocol import ChatRequest, Request
from plimsoll.errors import BadRequest, PlimsollError
from plimsoll.http.answer import Answer, WholeAnswer, collect, side_by_side
from plimsoll.http.app_state import App, AppState
from plimsoll.http.body import check_size, read
from plimsoll.http.errors import as_plimsoll, envelope, respond
from plimsoll.http.limits.body_budget import HttpRequest
from plimsoll.http.request_defaults import known_names, model_for, with_defaults
from plimsoll.http.request_log import texts_of

EVENT_STREAM = "text/event-stream; charset=utf-8"
NO_BUFFERING = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_INT64 = 2**63
_MB = 1_000_000
# While nothing was sent and the model is neither loaded nor being loaded, a stream stays silent this many times longer:
# a refusal in that time has an HTTP status of its own, which programs understand better than an event in a stream. At
# the default keep-alive that is still less than the 30 s after which proxies give up.
_UNDECIDED_TIMES = 4


class RequestContext(msgspec.Struct, frozen=True):
    """A request that is about to be answered: its body, the model that was found, and the id of its answer."""

    state: AppState
    request: HttpRequest
    body: Any
    model: CatalogModel
    prompts: Sequence[Request]
    copies: int
    id: str


class AnswerEncoder:
    """Writes the answers to one request in the format of one API, as a stream or whole.

    A request may have several answers, numbered from 0. The methods for a stream return the bytes to send, none for
    nothing.
    """

    content_type: ClassVar[str] = EVENT_STREAM

    def hear(self, batch: list[Any]) -> None:
        """Called with every batch of items as it comes, streamed or not, before anything is written of it."""

    def events(self, index: int, batch: list[Any]) -> bytes:
        """The bytes for a batch of answer number ``index``: replies of ``actors/replies.py``, ``Waiting`` among them.

        Called once per answer with a batch that ends with ``Finished``; never with a ``Failed``.
        """
        raise NotImplementedError

    def silence(self, waiting: Waiting | None) -> bytes:
        """The bytes that keep a silent stream open; ``waiting`` says what the answer has waited for last.

        Clients of server-sent events ignore a comment.
        """
        return b": " + waiting_text(waiting).encode() + b"\n\n"

    def failure(self, error: PlimsollError) -> bytes:
        """The end of a stream that can't go on; only called when something was sent before. Clients raise on it."""
        return b"data: " + msgspec.json.encode(envelope(error)) + b"\n\n"

    def whole(self, answers: list[WholeAnswer]) -> Any:
        """The body of an answer that is not streamed."""
        raise NotImplementedError


def _wants_stream(body: Any) -> bool:
    return bool(body.stream)


async def _find(state: AppState, name: str) -> CatalogModel:
    return await state.find(name)


async def _as_it_is(_state: AppState, error: BadRequest) -> BadRequest:
    return error


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What one endpoint has of its own.

    - ``api``: its name in the metrics.
    - ``decoder`` and ``allowed``: see ``body.read``.
    - ``prompts``: the engine's requests in a body; each is answered ``copies`` times. Without any, the encoder gets no
      answers. Raises ``BadRequest``.
    - ``resolve``: the body with what it refers to in its place. Raises ``BadRequest``.
    - ``text``: what this API calls the parameter that holds the text.
    - ``encoder``: makes the encoder of one request's answers.
    - ``streams``: whether the body asks for a stream.
    - ``find``: the model of the name in the body. Raises ``UnknownModel`` and ``Unavailable``.
    - ``keep_alive``: how long the request wants its model kept, if it says so.
    - ``explained``: what a client is told where the model refuses a request that is not streamed.
    """

    api: str
    decoder: "msgspec.json.Decoder[Any]"
    allowed: Mapping[str, str]
    prompts: Callable[[Any], Sequence[Request]]
    encoder: Callable[[RequestContext], AnswerEncoder]
    resolve: Callable[[AppState, HttpRequest, Any], Any] = lambda _state, _request, body: body
    text: str = "messages"
    copies: Callable[[Any], int] = lambda _body: 1
    streams: Callable[[Any], bool] = _wants_stream
    find: Callable[[AppState, str], Awaitable[CatalogModel]] = _find
    keep_alive: Callable[[RequestContext], KeepAlive | None] = lambda _context: None
    explained: Callable[[AppState, BadRequest], Awaitable[BadRequest]] = _as_it_is


def add_endpoint(app: App, path: str, name: str, endpoint: Endpoint) -> None:
    """Register ``endpoint`` at ``path``, as Sanic's route ``name``."""

    async def handle(request: HttpRequest) -> HTTPResponse | None:
        return await answer(app.ctx.state, endpoint, request, _read(app.ctx.state, endpoint, request))

    app.add_route(handle, path, methods=["POST"], name=name)


def _read(state: AppState, endpoint: Endpoint, request: HttpRequest) -> Any:
    """The request's body. Raises as ``body.read`` does; where the model's name is wrong the error lists the names."""
    try:
        return read(request, endpoint.decoder, endpoint.allowed)
    except BadRequest as error:
        if error.param != "model":
            raise
        raise BadRequest(f"{error.message}; {known_names(state)}", param="model") from None


async def answer(state: AppState, endpoint: Endpoint, request: HttpRequest, body: Any) -> HTTPResponse | None:
    """Answer a request whose ``body`` has been read. None: the answer was streamed.

    Raises every ``PlimsollError`` that comes before the first byte of the answer.
    """
    body = endpoint.resolve(state, request, body)
    prompts = endpoint.prompts(body)
    for prompt in prompts:
        check_size(prompt, state.config.limits, endpoint.text)
    model = await model_for(state, endpoint.find, body)
    prompts = [with_defaults(prompt, model.defaults) for prompt in prompts]
    context = RequestContext(state, request, body, model, prompts, endpoint.copies(body), secrets.token_hex(16))
    encoder = endpoint.encoder(context)
    answers = _answers(context, endpoint, encoder)
    with state.running():
        if endpoint.streams(body):
            await Stream(request, encoder, state.config.server.keepalive).run(answers)
            return None
        try:
            wholes = await collect(answers)
        except BadRequest as error:
            raise await endpoint.explained(state, error) from None
    return respond(200, encoder.whole(wholes))


def _answers(context: RequestContext, endpoint: Endpoint, encoder: AnswerEncoder) -> list[Answer]:
    state, name = context.state, context.model.source.name
    key = context.request.ctx.caller.name
    keep_alive = endpoint.keep_alive(context)
    return [
        Answer(
            state.supervisor,
            name,
            one,
            state.recorder.begin(
                endpoint.api, name, key=key, request_id=answer_id, texts=texts_of(one, state.config.requests)
            ),
            answer_id=answer_id,
            hear=encoder.hear,
            keep_alive=keep_alive,
        )
        for answer_id, one in _numbered(context)
    ]


def _numbered(context: RequestContext) -> Iterator[tuple[str, Request]]:
    """Every request to the engine, with the id of its answer: the context's own for the first."""
    for prompt in context.prompts:
        for number, one in enumerate(variants(prompt, context.copies)):
            is_first = prompt is context.prompts[0] and not number
            yield context.id if is_first else secrets.token_hex(16), one


def variants(request: Request, count: int) -> list[Request]:
    """``count`` requests for the same prompt. A seed grows by one each time, or all answers would be the same."""
    if count == 1 or not isinstance(request, ChatRequest) or request.sampling.seed is None:
        return [request] * count
    seed = request.sampling.seed
    return [_seeded(request, (seed + index + _INT64) % (2 * _INT64) - _INT64) for index in range(count)]


def _seeded(request: ChatRequest, seed: int) -> ChatRequest:
    return msgspec.structs.replace(request, sampling=msgspec.structs.replace(request.sampling, seed=seed))


class Stream:
    """Writes answers to one HTTP response as they come.

    Nothing is sent before the encoder has bytes for the first time, so a failure until then is raised and gets an HTTP
    status of its own; a later one becomes ``encoder.failure``. A silent stream gets ``encoder.silence`` after
    ``keepalive_s``, or four times that while nothing was sent and all that is known is that the request is queued.
    """

    def __init__(self, request: HttpRequest, encoder: AnswerEncoder, keepalive_s: float) -> None:
        self._request = request
        self._encoder = encoder
        self._keepalive_s = keepalive_s
        self._sent_s = time.monotonic()
        self._response: HTTPResponse | None = None
        self._waiting: Waiting | None = None
        self._sending = asyncio.Lock()

    async def run(self, answers: Sequence[Answer]) -> None:
        """Stream ``answers`` side by side until all have ended. The first failure ends them all."""
        # Nothing here bounds what piles up while the client does not read: ``ConnectionSweeper`` looks at this figure.
        connection: Any = self._request.stream.protocol  # type: ignore[union-attr] # Sanic's HTTP/1 one
        connection.waiting = lambda: sum(one.waiting for one in answers)
        try:
            await side_by_side([self._follow(index, one) for index, one in enumerate(answers)])
        except Exception as error:
            if self._response is None:
                raise
            told = as_plimsoll(error, self._request.path)
            self._request.app.ctx.state.recorder.error(told.code)
            await self._send(self._encoder.failure(told))
        if self._response is not None:
            await self._response.send(end_stream=True)

    async def _follow(self, index: int, answer: Answer) -> None:
        async with answer:
            async for batch in answer.batches(self._silence_left_s):
                await self._write(index, batch)

    async def _write(self, index: int, batch: list[Any]) -> None:
        if out := self._encoder.events(index, batch):
            self._waiting = None
        elif batch and isinstance(batch[-1], Waiting):
            self._waiting = batch[-1]
        async with self._sending:
            if not out and self._silence_left_s() <= 0:
                out = self._encoder.silence(self._waiting)
                self._sent_s = time.monotonic()
            if out:
                await self._send(out)

    def _silence_left_s(self) -> float:
        undecided = self._response is None and (self._waiting is None or self._waiting.stage == "queue")
        silence_s = self._keepalive_s * (_UNDECIDED_TIMES if undecided else 1)
        return self._sent_s + silence_s - time.monotonic()

    async def _send(self, data: bytes) -> None:
        if self._response is None:
            kind = self._encoder.content_type
            self._response = await self._request.respond(status=200, headers=NO_BUFFERING, content_type=kind)
        await self._response.send(data)
        self._sent_s = time.monotonic()


def waiting_text(waiting: Waiting | None) -> str:
    """What an answer waits for, as text for people."""
    if waiting is None:
        return "waiting"
    if waiting.stage == "queue":
        return "waiting in the queue"
    if waiting.stage == "resume":
        return "paused: the answer goes on as soon as the model is in memory again"
    if waiting.stage == "memory":
        return f"waiting for memory: {waiting.done / _MB:.0f} of {waiting.total / _MB:.0f} MB are free for this answer"
    if waiting.stage == "prefill":
        return f"reading the prompt: {waiting.done}/{waiting.total or '?'} tokens"
    total = f"{waiting.total / _MB:.0f}" if waiting.total else "?"
    return f"waiting for the model to load: {waiting.stage} {waiting.done / _MB:.0f}/{total} MB"
