"""Ollama's endpoints that answer: chat, generate and embed. The others are added from here."""

import struct

from sanic import HTTPResponse

from plimsoll.engine.protocol import Request
from plimsoll.http.access.keys import Caller
from plimsoll.http.errors import respond
from plimsoll.http.front import AnyRequest, App, Front
from plimsoll.http.limits.request import check_chat, check_embed
from plimsoll.http.ollama import models, pull
from plimsoll.http.ollama.errors import reshape_errors
from plimsoll.http.ollama.frames import NDJSON, Lines, Shape, done_reason
from plimsoll.http.ollama.lease import LeasedAnswer, find, heeded, load, refuse_unload, unload
from plimsoll.http.ollama.request import (
    AnswerBody,
    EmbedBody,
    ModelBody,
    chat_request,
    embed_request,
    generate_request,
    parse_chat,
    parse_embed,
    parse_embeddings,
    parse_generate,
)
from plimsoll.http.sse import Stream
from plimsoll.http.whole import Whole, gather

_UNSUPPORTED = {"/api/create": "POST", "/api/copy": "POST", "/api/push": "POST", "/api/delete": "DELETE"}


def add_routes(app: App, front: Front) -> None:
    """Register Ollama's endpoints."""
    api = _Ollama(front)
    app.add_route(api.chat, "/api/chat", methods=["POST"], name="ollama_chat")
    app.add_route(api.generate, "/api/generate", methods=["POST"], name="ollama_generate")
    app.add_route(api.embed, "/api/embed", methods=["POST"], name="ollama_embed")
    app.add_route(api.embeddings, "/api/embeddings", methods=["POST"], name="ollama_embeddings")
    for path, method in _UNSUPPORTED.items():
        app.add_route(_unsupported, path, methods=[method], name=f"ollama_{path.rpartition('/')[2]}")
    app.add_route(_unsupported, "/api/blobs/<_digest:path>", methods=["HEAD", "POST"], name="ollama_blobs")
    models.add_routes(app, front)
    pull.add_routes(app, front)
    reshape_errors(app, "/api/")


class _Ollama:
    def __init__(self, front: Front) -> None:
        self._front = front

    async def chat(self, request: AnyRequest) -> HTTPResponse | None:
        body = parse_chat(request)
        shape = Shape(body.model, chat=True)
        if not body.messages:
            return await self._load_or_unload(request, body, shape)
        return await self._answer(request, body, shape, check_chat(chat_request(body), self._front.config.limits))

    async def generate(self, request: AnyRequest) -> HTTPResponse | None:
        body = parse_generate(request)
        asked = check_chat(generate_request(body), self._front.config.limits, "prompt")
        shape = Shape(body.model, chat=False)
        if not body.prompt:
            return await self._load_or_unload(request, body, shape)
        return await self._answer(request, body, shape, asked)

    async def embed(self, request: AnyRequest) -> HTTPResponse:
        body = parse_embed(request)
        answer = self._leased(request, body, check_embed(embed_request(body), self._front.config.limits))
        whole = Whole()
        if body.input:
            whole = await self._embed(answer)
        figures = answer.timing.load() | {"prompt_eval_count": whole.usage.prompt_tokens}
        return respond(200, {"model": body.model, "embeddings": _rows(whole), **figures})

    async def embeddings(self, request: AnyRequest) -> HTTPResponse:
        body = parse_embeddings(request)
        asked = EmbedBody(model=body.model, input=body.prompt or "", keep_alive=body.keep_alive)
        answer = self._leased(request, asked, check_embed(embed_request(asked), self._front.config.limits, "prompt"))
        vectors = _rows(await self._embed(answer)) if body.prompt else []
        return respond(200, {"embedding": vectors[0] if vectors else []})

    async def _embed(self, answer: LeasedAnswer) -> Whole:
        with self._front.running():
            (whole,) = await gather(answer)
        return whole

    async def _answer(self, request: AnyRequest, body: AnswerBody, shape: Shape, asked: Request) -> HTTPResponse | None:
        answer = self._leased(request, body, asked)
        with self._front.running():
            if body.stream is not False:
                lines = Lines(shape, answer.timing)
                keepalive_s = self._front.config.server.keepalive
                await Stream(request, lines, keepalive_s, content_type=NDJSON).run(answer)
                return None
            (whole,) = await gather(answer)
        figures = answer.timing.figures(whole.usage)
        said = {"text": whole.text, "thinking": whole.reasoning, "calls": whole.calls, "logprobs": whole.logprobs}
        return respond(200, shape.end(done_reason(whole.reason), figures, **said))

    async def _load_or_unload(self, request: AnyRequest, body: AnswerBody, shape: Shape) -> HTTPResponse:
        model = find(self._front, body.model)
        caller: Caller = request.ctx.caller
        if body.keep_alive_s == 0:
            refuse_unload(caller, model)
            await unload(self._front, model)
            return respond(200, shape.end("unload"))
        await load(self._front, model, heeded(caller, body.keep_alive_s))
        return respond(200, shape.end("load"))

    def _leased(self, request: AnyRequest, body: ModelBody, asked: Request) -> LeasedAnswer:
        keep_alive_s = heeded(request.ctx.caller, body.keep_alive_s)
        return LeasedAnswer(self._front, find(self._front, body.model), asked, keep_alive_s)


def _rows(whole: Whole) -> list[list[float]]:
    vectors = whole.vectors
    return [] if vectors is None else [list(row) for row in struct.iter_unpack(f"<{vectors.dimensions}f", vectors.data)]


async def _unsupported(request: AnyRequest, _digest: str = "") -> HTTPResponse:
    what = "; models are named in the server's configuration (models.entries) or lie in models.dir"
    return respond(501, {"error": f"{request.path} is not supported{what}"})
