"""OpenAI's endpoints: chat completions and the model list."""

import time
from urllib.parse import unquote

from sanic import HTTPResponse
from sanic.exceptions import SanicException

from plimsoll.actors.messages import Delta, Finished, Waiting
from plimsoll.engine.protocol import Usage
from plimsoll.errors import Unavailable
from plimsoll.http import openai_frames as frames
from plimsoll.http.errors import as_plimsoll, respond
from plimsoll.http.front import AnyRequest, App, Front
from plimsoll.http.openai_request import chat_request, parse
from plimsoll.http.stream import Answer

_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def add_routes(app: App, front: Front) -> None:
    """Register this module's endpoints."""
    api = _OpenAI(front)
    app.add_route(api.chat_completions, "/v1/chat/completions", methods=["POST"], name="chat_completions")
    app.add_route(api.models, "/v1/models", methods=["GET", "HEAD"], name="models")
    app.add_route(api.model, "/v1/models/<name:path>", methods=["GET", "HEAD"], name="model")


class _OpenAI:
    def __init__(self, front: Front) -> None:
        self._front = front

    async def chat_completions(self, request: AnyRequest) -> HTTPResponse | None:
        _refuse_forms(request)
        body = parse(request.body)
        self._front.catalog.find(body.model)
        answer = Answer(self._front.supervisor, body.model, chat_request(body))
        _hear_disconnects(request)
        with self._front.running():
            if not body.stream:
                return await _complete(answer)
            include_usage = bool(body.stream_options and body.stream_options.include_usage)
            chunks = frames.Chunks(answer.id, body.model, int(time.time()), include_usage=include_usage)
            await _Stream(request, chunks, self._front.config.server.keepalive).run(answer)
            return None

    async def models(self, _request: AnyRequest) -> HTTPResponse:
        data = [frames.model_body(name, self._front.created) for name in self._front.catalog.names()]
        return respond(200, {"object": "list", "data": data})

    async def model(self, _request: AnyRequest, name: str) -> HTTPResponse:
        name = unquote(name)  # Sanic leaves an encoded slash alone
        self._front.catalog.find(name)
        return respond(200, frames.model_body(name, self._front.created))


async def _complete(answer: Answer) -> HTTPResponse:
    created, texts = int(time.time()), []
    reason, usage = "stop", Usage()
    async with answer:
        async for batch in answer.batches():
            texts += [item.text for item in batch if isinstance(item, Delta)]
            if batch and isinstance(batch[-1], Finished):
                reason, usage = _reason(batch[-1]), batch[-1].usage
    text = "".join(texts)
    return respond(200, frames.completion(answer.id, answer.model, created, text=text, reason=reason, usage=usage))


class _Stream:
    """One streamed answer: nothing is sent before the first text, so that an early failure has its own status."""

    def __init__(self, request: AnyRequest, chunks: frames.Chunks, keepalive_s: float) -> None:
        self._request = request
        self._chunks = chunks
        self._keepalive_s = keepalive_s
        self._sent_s = time.monotonic()
        self._response: HTTPResponse | None = None
        self._role_sent = False
        self._waiting: Waiting | None = None

    async def run(self, answer: Answer) -> None:
        try:
            async with answer:
                async for batch in answer.batches(self._silence_left_s):
                    await self._pass_on(batch)
        except Exception as error:
            if self._response is None:
                raise
            await self._send(frames.failure(as_plimsoll(error, self._request.path)))
        if self._response is not None:
            await self._response.send(end_stream=True)

    def _silence_left_s(self) -> float:
        return self._sent_s + self._keepalive_s - time.monotonic()

    async def _pass_on(self, batch: list[Waiting | Delta | Finished]) -> None:
        out = self._events(batch)
        if out and not self._role_sent:
            self._role_sent = True
            out = self._chunks.role() + out
        elif not out and self._silence_left_s() <= 0:
            out = frames.comment(self._waiting)
        if out:
            await self._send(out)

    def _events(self, batch: list[Waiting | Delta | Finished]) -> bytes:
        out, text = b"", ""
        for item in batch:
            if isinstance(item, Delta):
                text += item.text
                self._waiting = None
            elif isinstance(item, Waiting):
                self._waiting = item
        if text:
            out = self._chunks.text(text)
        if batch and isinstance(batch[-1], Finished):
            out += self._chunks.ending(_reason(batch[-1]), batch[-1].usage)
        return out

    async def _send(self, data: bytes) -> None:
        if self._response is None:
            self._response = await self._request.respond(
                status=200, headers=_STREAM_HEADERS, content_type="text/event-stream; charset=utf-8"
            )
        await self._response.send(data)
        self._sent_s = time.monotonic()


def _reason(ending: Finished) -> str:
    """``stop`` or ``length``. Raises where the server itself cancelled the answer."""
    if ending.reason == "cancelled":
        raise Unavailable("the answer was cancelled by the server", retry_after_s=1)
    return ending.reason


def _refuse_forms(request: AnyRequest) -> None:
    """Anything may call itself JSON (curl -d says urlencoded), but a multipart body can't be it."""
    kind = request.headers.get("content-type", "")
    if kind.lower().startswith("multipart/"):
        text = f"the body must be JSON (Content-Type: application/json), not {kind.partition(';')[0]}"
        raise SanicException(text, status_code=415)


def _hear_disconnects(request: AnyRequest) -> None:
    """Sanic stops reading the socket during a large body and stays so: the client's going would not be noticed."""
    if request.transport is not None:
        request.transport.resume_reading()  # type: ignore[attr-defined] # a ReadTransport
