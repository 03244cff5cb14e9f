"""Errors as Anthropic's clients know them."""

from typing import Any

import msgspec

from plimsoll.http.front import App

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_body(status: int, message: str) -> dict[str, Any]:
    """``{"type": "error", "error": {type, message}}``, the type by the status."""
    other = "invalid_request_error" if status < 500 else "api_error"
    return {"type": "error", "error": {"type": _TYPES.get(status, other), "message": message}}


def reshape_errors(app: App, prefix: str) -> None:
    """Errors under ``prefix`` take this shape, wherever in the server they were made."""

    async def reshape(request: Any, response: Any) -> None:
        if response.status >= 400 and response.body and request.path.startswith(prefix):
            error = msgspec.json.decode(response.body)["error"]
            response.body = msgspec.json.encode(error_body(response.status, error["message"]))

    app.register_middleware(reshape, "response")
