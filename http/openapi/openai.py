"""OpenAI's endpoints, for the OpenAPI document."""

from typing import Any

from plimsoll.http.openai import completions, embeddings, request
from plimsoll.http.openai.responses import routes as responses
from plimsoll.http.openapi.openai_answers import (
    ChatChunk,
    ChatCompletion,
    Embeddings,
    Error,
    Model,
    Models,
    TextCompletion,
)
from plimsoll.http.openapi.responses import Response, ResponseEvent
from plimsoll.http.openapi.shape import SSE, Content, Operation, Parameter, json_of

_FAILS = (507,)
_HI = [{"role": "user", "content": "What is the capital of France?"}]
MODEL = Parameter("model", "A model's name; it may hold slashes.")


def _answers(
    path: str, about: str, body: type, forms: tuple[type, type], example: dict[str, Any], *, last: str | None = "[DONE]"
) -> Operation:
    whole, event = forms
    return Operation(
        path=path,
        about=f"{about}; with `stream` as server-sent events",
        tag="OpenAI",
        error=Error,
        methods=("post",),
        body=body,
        example={"model": "smollm2-135m"} | example,
        answers={200: (*json_of(whole), Content(SSE, (event, Error), last))},
        errors=_FAILS,
    )


OPERATIONS = (
    _answers(
        "/v1/chat/completions",
        "Answer a conversation",
        request.Body,
        (ChatCompletion, ChatChunk),
        {"messages": _HI},
    ),
    _answers(
        "/v1/completions",
        "Go on with a prompt, without the model's template",
        completions.Body,
        (TextCompletion, TextCompletion),
        {"prompt": "The capital of France is"},
    ),
    _answers(
        "/v1/responses",
        "Answer items with items; nothing is stored",
        responses.Body,
        (Response, ResponseEvent),
        {"input": "What is the capital of France?"},
        last=None,
    ),
    Operation(
        path="/v1/embeddings",
        about="Turn texts into vectors",
        tag="OpenAI",
        error=Error,
        methods=("post",),
        body=embeddings.Body,
        example={"model": "all-minilm-l6-v2", "input": "a ship"},
        answers={200: json_of(Embeddings)},
        errors=_FAILS,
    ),
    Operation(
        path="/v1/models", about="Which models may be named", tag="OpenAI", error=Error, answers={200: json_of(Models)}
    ),
    Operation(
        path="/v1/models/{model}",
        about="One of them",
        tag="OpenAI",
        error=Error,
        parameters=(MODEL,),
        answers={200: json_of(Model)},
    ),
)
