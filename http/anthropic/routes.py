"""Anthropic's endpoints: messages, and how many tokens they are."""

from sanic import HTTPResponse

from plimsoll.engine.protocol import ChatRequest
from plimsoll.http.anthropic.errors import reshape_errors
from plimsoll.http.anthropic.events import Events, message
from plimsoll.http.anthropic.request import chat_request, count_request, parse
from plimsoll.http.errors import respond
from plimsoll.http.front import AnyRequest, App, Front
from plimsoll.http.limits.request import check_chat
from plimsoll.http.sse import Stream
from plimsoll.http.stream import Answer
from plimsoll.http.whole import gather

_MESSAGES = "/v1/messages"


def add_routes(app: App, front: Front) -> None:
    """Register this module's endpoints."""
    api = _Anthropic(front)
    app.add_route(api.messages, _MESSAGES, methods=["POST"], name="anthropic_messages")
    app.add_route(api.count_tokens, f"{_MESSAGES}/count_tokens", methods=["POST"], name="anthropic_count_tokens")
    reshape_errors(app, _MESSAGES)


class _Anthropic:
    def __init__(self, front: Front) -> None:
        self._front = front

    async def messages(self, request: AnyRequest) -> HTTPResponse | None:
        body = parse(request)
        answer = self._answer(body.model, chat_request(body))
        with self._front.running():
            if body.stream:
                events = Events(answer.id, body.model)
                await Stream(request, events, self._front.config.server.keepalive).run(answer)
                return None
            (whole,) = await gather(answer)
        return respond(200, message(answer.id, body.model, whole))

    async def count_tokens(self, request: AnyRequest) -> HTTPResponse:
        body = parse(request)
        with self._front.running():
            (whole,) = await gather(self._answer(body.model, count_request(body)))
        return respond(200, {"input_tokens": whole.usage.prompt_tokens})

    def _answer(self, model: str, request: ChatRequest) -> Answer:
        check_chat(request, self._front.config.limits)
        self._front.catalog.find(model)
        return Answer(self._front.supervisor, model, request, self._front.recorder.begin("anthropic", model))
