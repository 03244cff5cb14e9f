"""What the configuration sets where a request says nothing: the model, and the defaults of its entry or profile."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from plimsoll.catalog.defaults import Defaults
from plimsoll.catalog.entries import CatalogModel
from plimsoll.engine.protocol import ChatRequest, Request
from plimsoll.errors import BadRequest, UnknownModel
from plimsoll.http.app_state import AppState

# Template arguments by which a client itself says whether the model shall think.
_THINKING = frozenset({"enable_thinking", "thinking", "enable_reasoning", "thinking_mode"})


_MOST_NAMES = 10
_NO_DEFAULTS = Defaults()
_Find = Callable[[AppState, str], Awaitable[CatalogModel]]


async def model_for(state: AppState, find: _Find, body: Any) -> CatalogModel:
    """The model that ``body`` names, else ``models.default``, whose name the body gets then.

    Raises ``UnknownModel``, ``Unavailable``, and ``BadRequest`` where there is no name.
    """
    default = state.config.models.default
    if body.model:
        try:
            return await find(state, body.model)
        except UnknownModel:
            if not default:
                raise
    if not default:
        raise BadRequest(f"model is missing, but must be a model's name; {known_names(state)}", param="model")
    body.model = default
    return await find(state, default)


def known_names(state: AppState) -> str:
    """The first names of models that a client may use, in words."""
    names = state.catalog.names()
    return f"the models are: {', '.join(names[:_MOST_NAMES])}" if names else "there are no models yet"


def with_defaults(request: Request, defaults: Defaults) -> Request:
    """The request as it would be if the client had sent what it left out. What the client sent stays."""
    if not isinstance(request, ChatRequest) or defaults == _NO_DEFAULTS:
        return request
    changes: dict[str, Any] = {}
    if request.given is not None:
        left_out = {name: value for name, value in defaults.sampling if name not in request.given}
        changes["sampling"] = msgspec.structs.replace(request.sampling, **left_out)
        changes["given"] = (*request.given, *left_out)
    if request.max_tokens is None:
        changes["max_tokens"] = defaults.max_tokens
    if request.thinking is None and not _THINKING & request.template_kwargs.keys():
        changes["thinking"] = defaults.thinking
    if request.thinking_budget is None:
        changes["thinking_budget"] = defaults.thinking_budget
    if defaults.system_prefix and request.prompt is None:
        changes["messages"] = _with_prefix(request.messages, defaults.system_prefix)
    return msgspec.structs.replace(request, **changes)


def _with_prefix(messages: list[dict[str, Any]], prefix: str) -> list[dict[str, Any]]:
    if not messages or messages[0]["role"] != "system":
        return [{"role": "system", "content": prefix}, *messages]
    first = messages[0]
    told = first.get("content")
    return [{**first, "content": f"{prefix}\n\n{told}" if told else prefix}, *messages[1:]]
