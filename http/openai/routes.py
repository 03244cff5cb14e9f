"""OpenAI's endpoints: chat completions, the model list, and what the sibling modules add."""

import time
from urllib.parse import unquote

from sanic import HTTPResponse

from plimsoll.http.body import read
from plimsoll.http.errors import respond
from plimsoll.http.front import AnyRequest, App, Front
from plimsoll.http.limits.request import check_chat
from plimsoll.http.openai import completions, embeddings
from plimsoll.http.openai.frames import Chunks, completion
from plimsoll.http.openai.params import variants
from plimsoll.http.openai.request import ALLOWED, Body, chat_request, decoder
from plimsoll.http.openai.responses import routes as responses
from plimsoll.http.openai.shapes import Head
from plimsoll.http.sse import Stream
from plimsoll.http.stream import Answer
from plimsoll.http.whole import gather


def add_routes(app: App, front: Front) -> None:
    """Register this module's endpoints."""
    api = _OpenAI(front)
    app.add_route(api.chat_completions, "/v1/chat/completions", methods=["POST"], name="chat_completions")
    app.add_route(api.models, "/v1/models", methods=["GET", "HEAD"], name="models")
    app.add_route(api.model, "/v1/models/<name:path>", methods=["GET", "HEAD"], name="model")
    for part in (completions, responses, embeddings):
        part.add_routes(app, front)


class _OpenAI:
    def __init__(self, front: Front) -> None:
        self._front = front

    async def chat_completions(self, request: AnyRequest) -> HTTPResponse | None:
        body: Body = read(request, decoder, ALLOWED)
        asked = variants(check_chat(chat_request(body), self._front.config.limits), body.n or 1)
        self._front.catalog.find(body.model)
        begin = self._front.recorder.begin
        answers = [Answer(self._front.supervisor, body.model, one, begin("openai", body.model)) for one in asked]
        head = Head(
            id=f"chatcmpl-{answers[0].id}",
            model=body.model,
            created=int(time.time()),
            count=len(answers),
            per_prompt=len(answers),
            include_usage=body.include_usage(),
            scored=bool(body.logprobs),
        )
        with self._front.running():
            if not body.stream:
                return respond(200, completion(head, await gather(*answers)))
            await Stream(request, Chunks(head), self._front.config.server.keepalive).run(*answers)
            return None

    async def models(self, _request: AnyRequest) -> HTTPResponse:
        data = [_model_body(name, self._front.created) for name in self._front.catalog.names()]
        return respond(200, {"object": "list", "data": data})

    async def model(self, _request: AnyRequest, name: str) -> HTTPResponse:
        name = unquote(name)  # Sanic leaves an encoded slash alone
        self._front.catalog.find(name)
        return respond(200, _model_body(name, self._front.created))


def _model_body(name: str, created: int) -> dict[str, str | int]:
    return {"id": name, "object": "model", "created": created, "owned_by": "plimsoll"}
