"""What is stored of responses and conversations, for the OpenAPI document."""

from typing import Any, Literal

from plimsoll.http.openai.responses import kept_responses
from plimsoll.http.openapi.openai import Error
from plimsoll.http.openapi.responses import Response
from plimsoll.http.openapi.schema import Operation, Parameter, Told, json_of


class Deleted(Told):
    id: str
    object: Literal["response", "conversation.deleted"]
    deleted: bool


class StoredItems(Told):
    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Conversation(Told):
    id: str
    object: Literal["conversation"]
    created_at: int
    metadata: dict[str, str]


_RESPONSE = Parameter("response", "A response's id.")
_CONVERSATION = Parameter("conversation", "A conversation's id.")

OPERATIONS = (
    Operation(
        path="/v1/responses/{response}",
        about="A response that is stored, until newer ones take its room",
        tag="OpenAI",
        error=Error,
        parameters=(_RESPONSE,),
        answers={200: json_of(Response)},
    ),
    Operation(
        path="/v1/responses/{response}",
        about="Forget it",
        tag="OpenAI",
        error=Error,
        methods=("delete",),
        parameters=(_RESPONSE,),
        answers={200: json_of(Deleted)},
    ),
    Operation(
        path="/v1/responses/{response}/input_items",
        about="The items of the conversation up to it",
        tag="OpenAI",
        error=Error,
        parameters=(_RESPONSE,),
        answers={200: json_of(StoredItems)},
    ),
    Operation(
        path="/v1/conversations",
        about="Begin a conversation that responses can go on with",
        tag="OpenAI",
        error=Error,
        methods=("post",),
        body=kept_responses.ConversationBody,
        answers={200: json_of(Conversation)},
    ),
    Operation(
        path="/v1/conversations/{conversation}",
        about="A conversation that is stored",
        tag="OpenAI",
        error=Error,
        parameters=(_CONVERSATION,),
        answers={200: json_of(Conversation)},
    ),
    Operation(
        path="/v1/conversations/{conversation}",
        about="Forget it",
        tag="OpenAI",
        error=Error,
        methods=("delete",),
        parameters=(_CONVERSATION,),
        answers={200: json_of(Deleted)},
    ),
    Operation(
        path="/v1/conversations/{conversation}/items",
        about="Its items",
        tag="OpenAI",
        error=Error,
        parameters=(_CONVERSATION,),
        answers={200: json_of(StoredItems)},
    ),
)
