"""A request body of any of the four APIs as the engine gets it, for commands and tests that have no server."""

from typing import cast

from plimsoll.engine.protocol import ChatRequest
from plimsoll.errors import BadRequest
from plimsoll.http.anthropic.routes import MESSAGES
from plimsoll.http.body import decode
from plimsoll.http.ollama.routes import CHAT
from plimsoll.http.openai.responses.routes import RESPONSES
from plimsoll.http.openai.routes import CHAT_COMPLETIONS

_ENDPOINTS = {"openai": CHAT_COMPLETIONS, "responses": RESPONSES, "anthropic": MESSAGES, "ollama": CHAT}
APIS = tuple(_ENDPOINTS)


def chat_request(api: str, raw: bytes) -> ChatRequest:
    """The request in a body of ``api``. Raises ``BadRequest`` as the API would."""
    if api not in _ENDPOINTS:
        raise BadRequest(f"{api} is no API; the APIs are {', '.join(APIS)}.", param="api")
    endpoint = _ENDPOINTS[api]
    (request,) = endpoint.prompts(decode(raw, endpoint.decoder, endpoint.allowed))
    return cast("ChatRequest", request)
