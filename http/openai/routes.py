"""OpenAI's endpoints: chat completions, the model list, and those of the modules beside this one."""

import time

from plimsoll.http.app_state import App, AppState
from plimsoll.http.endpoint import Endpoint, RequestContext, add_endpoint
from plimsoll.http.openai import completions, embeddings, models, rerank
from plimsoll.http.openai.answers import ChatEncoder, Head
from plimsoll.http.openai.request import ALLOWED, Body, chat_request, decoder
from plimsoll.http.openai.responses import kept_responses
from plimsoll.http.openai.responses import routes as responses


def _encoder(context: RequestContext) -> ChatEncoder:
    body: Body = context.body
    head = Head(
        id=f"chatcmpl-{context.id}",
        model=body.model,
        created=int(time.time()),
        count=context.copies,
        per_prompt=context.copies,
        include_usage=body.include_usage(),
        scored=bool(body.logprobs),
        custom=frozenset(body.offered.known),
    )
    return ChatEncoder(head)


CHAT_COMPLETIONS = Endpoint(
    api="openai",
    decoder=decoder,
    allowed=ALLOWED,
    prompts=lambda body: [chat_request(body)],
    copies=lambda body: body.n or 1,
    encoder=_encoder,
)


def add_routes(app: App, state: AppState) -> None:
    """Register the endpoints of this API."""
    add_endpoint(app, "/v1/chat/completions", "chat_completions", CHAT_COMPLETIONS)
    add_endpoint(app, "/v1/completions", "completions", completions.COMPLETIONS)
    add_endpoint(app, "/v1/responses", "responses", responses.RESPONSES)
    add_endpoint(app, "/v1/embeddings", "embeddings", embeddings.EMBEDDINGS)
    for path in rerank.PATHS:
        add_endpoint(app, path, path.strip("/").replace("/", "_"), rerank.RERANK)
    models.add_routes(app, state)
    kept_responses.add_routes(app, state)
