"""Errors as Ollama's clients know them: one sentence, and 503 with "server busy" where trying again helps."""

from typing import Any

import msgspec

from plimsoll.errors import PlimsollError
from plimsoll.http.front import App

# A full queue is Ollama's own reason for 503; its clients know no 429.
_BUSY = frozenset({"queue_full", "insufficient_memory", "unavailable", "shutting_down"})


def error_body(message: str, code: str) -> dict[str, str]:
    """``{"error": "..."}``."""
    return {"error": f"server busy, please try again: {message}" if code in _BUSY else message}


def error_line(error: PlimsollError) -> bytes:
    """The line that ends a stream which can't go on."""
    return msgspec.json.encode(error_body(error.message, error.code)) + b"\n"


def reshape_errors(app: App, prefix: str) -> None:
    """Errors under ``prefix`` take this shape, wherever in the server they were made."""

    async def reshape(request: Any, response: Any) -> None:
        if response.status >= 400 and response.body and request.path.startswith(prefix):
            error = msgspec.json.decode(response.body)["error"]
            if isinstance(error, dict):
                response.body = msgspec.json.encode(error_body(error["message"], error["code"]))
                response.status = 503 if error["code"] in _BUSY else response.status

    app.register_middleware(reshape, "response")
