"""Anthropic's endpoints: messages, and how many tokens they are."""

from typing import Any

from plimsoll.http.answer import WholeAnswer
from plimsoll.http.anthropic.answers import MessageEncoder, format_error
from plimsoll.http.anthropic.request import ALLOWED, chat_request, count_request, decoder
from plimsoll.http.app_state import App, AppState
from plimsoll.http.endpoint import AnswerEncoder, Endpoint, add_endpoint

_PATH = "/v1/messages"


class CountEncoder(AnswerEncoder):
    """The number of a prompt's tokens, which is never streamed."""

    def whole(self, answers: list[WholeAnswer]) -> dict[str, Any]:
        (answer,) = answers
        return {"input_tokens": answer.usage.prompt_tokens}


MESSAGES = Endpoint(
    api="anthropic",
    decoder=decoder,
    allowed=ALLOWED,
    prompts=lambda body: [chat_request(body)],
    encoder=lambda context: MessageEncoder(context.id, context.body.model),
)
COUNT_TOKENS = Endpoint(
    api="anthropic",
    decoder=decoder,
    allowed=ALLOWED,
    prompts=lambda body: [count_request(body)],
    encoder=lambda _context: CountEncoder(),
    streams=lambda _body: False,
)


def add_routes(app: App, _state: AppState) -> None:
    """Register the endpoints of this API, and its format of errors."""
    add_endpoint(app, _PATH, "anthropic_messages", MESSAGES)
    add_endpoint(app, f"{_PATH}/count_tokens", "anthropic_count_tokens", COUNT_TOKENS)
    app.ctx.errors.add_format(_PATH, format_error)
