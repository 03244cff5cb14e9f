"""Ollama's endpoints that answer: chat, generate and embed. The others are added from here."""

from collections.abc import Sequence
from typing import Any

from sanic import HTTPResponse

from plimsoll.actors.messages import KeepAlive
from plimsoll.engine.protocol import Request
from plimsoll.http.access.permissions import Caller
from plimsoll.http.app_state import App, AppState
from plimsoll.http.body import check_size, read
from plimsoll.http.endpoint import Endpoint, RequestContext, add_endpoint, answer
from plimsoll.http.errors import respond
from plimsoll.http.known_models import with_embedding_models
from plimsoll.http.limits.body_budget import HttpRequest
from plimsoll.http.ollama import create, models, pull
from plimsoll.http.ollama.answers import EmbedEncoder, LineEncoder, OneVectorEncoder, Shape, format_error
from plimsoll.http.ollama.keep_alive import find, heeded, keep_alive_message, load, refuse_unload, unload
from plimsoll.http.ollama.request import (
    ALLOWED,
    AnswerBody,
    EmbedBody,
    EmbeddingsBody,
    chat_decoder,
    chat_request,
    embed_decoder,
    embed_request,
    embeddings_decoder,
    generate_decoder,
    generate_request,
)
from plimsoll.http.request_defaults import model_for

_UNSUPPORTED = {"/api/copy": "POST", "/api/push": "POST", "/api/delete": "DELETE"}


def _keep_alive(context: RequestContext) -> KeepAlive | None:
    return keep_alive_message(context.model, heeded(context.request.ctx.caller, context.body.keep_alive_s))


def _of_one_text(body: EmbeddingsBody) -> Sequence[Request]:
    return [embed_request(EmbedBody(model=body.model, input=body.prompt))] if body.prompt else []


_SAME: dict[str, Any] = {"api": "ollama", "allowed": ALLOWED, "find": find, "keep_alive": _keep_alive}
CHAT = Endpoint(
    **_SAME,
    decoder=chat_decoder,
    prompts=lambda body: [chat_request(body)],
    encoder=lambda context: LineEncoder(Shape(context.body.model, chat=True)),
    streams=lambda body: body.stream is not False,
)
GENERATE = Endpoint(
    **_SAME,
    decoder=generate_decoder,
    prompts=lambda body: [generate_request(body)],
    text="prompt",
    encoder=lambda context: LineEncoder(Shape(context.body.model, chat=False)),
    streams=lambda body: body.stream is not False,
)
EMBED = Endpoint(
    **_SAME,
    decoder=embed_decoder,
    prompts=lambda body: [embed_request(body)] if body.input else [],
    text="input",
    encoder=lambda context: EmbedEncoder(context.body.model),
    streams=lambda _body: False,
    explained=with_embedding_models,
)
EMBEDDINGS = Endpoint(
    **_SAME,
    decoder=embeddings_decoder,
    prompts=_of_one_text,
    text="prompt",
    encoder=lambda _context: OneVectorEncoder(),
    streams=lambda _body: False,
    explained=with_embedding_models,
)


def add_routes(app: App, state: AppState) -> None:
    """Register the endpoints of this API, and its format of errors."""

    async def chat(request: HttpRequest) -> HTTPResponse | None:
        body = read(request, CHAT.decoder, CHAT.allowed)
        if not body.messages:
            return await _load_or_unload(state, request, body, chat=True)
        return await answer(state, CHAT, request, body)

    async def generate(request: HttpRequest) -> HTTPResponse | None:
        body = read(request, GENERATE.decoder, GENERATE.allowed)
        if not body.prompt:
            check_size(generate_request(body), state.config.limits, GENERATE.text)
            return await _load_or_unload(state, request, body, chat=False)
        return await answer(state, GENERATE, request, body)

    app.add_route(chat, "/api/chat", methods=["POST"], name="ollama_chat")
    app.add_route(generate, "/api/generate", methods=["POST"], name="ollama_generate")
    add_endpoint(app, "/api/embed", "ollama_embed", EMBED)
    add_endpoint(app, "/api/embeddings", "ollama_embeddings", EMBEDDINGS)
    for path, method in _UNSUPPORTED.items():
        app.add_route(_unsupported, path, methods=[method], name=f"ollama_{path.rpartition('/')[2]}")
    app.add_route(_unsupported, "/api/blobs/<_digest:path>", methods=["HEAD", "POST"], name="ollama_blobs")
    models.add_routes(app, state)
    pull.add_routes(app, state)
    create.add_routes(app, state)
    app.ctx.errors.add_format("/api/", format_error)


async def _load_or_unload(state: AppState, request: HttpRequest, body: AnswerBody, *, chat: bool) -> HTTPResponse:
    """A request without a prompt loads its model, or unloads it where ``keep_alive`` is 0."""
    model = await model_for(state, find, body)
    caller: Caller = request.ctx.caller
    shape = Shape(body.model, chat=chat)
    if body.keep_alive_s == 0:
        refuse_unload(caller, model)
        await unload(state, model)
        return respond(200, shape.end("unload"))
    await load(state, model, heeded(caller, body.keep_alive_s))
    return respond(200, shape.end("load"))


async def _unsupported(request: HttpRequest, _digest: str = "") -> HTTPResponse:
    what = "; models are named in the server's configuration (models.entries) or lie in models.dir"
    return respond(501, {"error": f"{request.path} is not supported{what}"})
