"""Every error as a response: our own tree, Sanic's exceptions, and what nobody expected.

Errors are OpenAI's envelope, unless the API at the request's path has a format of its own.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Any

import msgspec
from sanic import HTTPResponse, Request
from sanic.exceptions import MethodNotAllowed, NotFound, PayloadTooLarge, SanicException
from sanic.handlers import ErrorHandler
from sanic.response import raw

from plimsoll.errors import (
    BodyTooLarge,
    HeadersTooLarge,
    InsufficientMemory,
    InternalError,
    LoadFailed,
    NeverFits,
    PlimsollError,
    Unauthorized,
)

_log = logging.getLogger("plimsoll.http")

# A refused body up to this size is read and dropped, so that its client sees the 413 instead of a reset connection.
_SWALLOWED_BYTES = 1 << 30
_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    415: "unsupported_media_type",
    417: "expectation_failed",
}


ErrorFormat = Callable[[int, dict[str, Any]], tuple[int, Any]]
"""Gets a status and what ``envelope`` has under ``error``; returns the status and the body of another API."""


def envelope(error: PlimsollError) -> dict[str, Any]:
    """``{"error": {message, type, param, code}}``; memory figures go under ``error.memory``."""
    body: dict[str, Any] = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    if isinstance(error, InsufficientMemory) and error.details:
        body["memory"] = error.details
    return {"error": body}


def as_plimsoll(error: BaseException, where: str) -> PlimsollError:
    """``error`` if it is a ``PlimsollError``; any other is logged with its traceback and becomes ``InternalError``."""
    if isinstance(error, PlimsollError):
        return error
    _log.error("unexpected %s in %s", type(error).__name__, where, exc_info=error)
    return InternalError("an internal error happened; the server's log has the details")


class ErrorResponses(ErrorHandler):
    """Sanic's error handler: the one place where errors become responses."""

    def __init__(self) -> None:
        super().__init__()
        self._formats: list[tuple[str, ErrorFormat]] = []

    def add_format(self, prefix: str, shape: ErrorFormat) -> None:
        """Errors of requests to paths that begin with ``prefix`` are formatted by ``shape``."""
        self._formats.append((prefix, shape))

    def default(self, request: Request[Any, Any], exception: BaseException) -> HTTPResponse:
        if isinstance(exception, PayloadTooLarge):
            return self._too_large(request, exception)
        if isinstance(exception, SanicException):
            return self._of_sanic(request, exception)
        if isinstance(exception, asyncio.CancelledError):
            return HTTPResponse(status=499)  # the client is gone: nobody reads this
        error = as_plimsoll(exception, f"{request.method} {request.path}")
        return self._respond(request, error.status, envelope(error), _headers(error))

    def _too_large(self, request: Request[Any, Any], exception: SanicException) -> HTTPResponse:
        limit = request.app.config.REQUEST_MAX_SIZE
        text = str(exception)
        if "body" in text:
            text = f"the request body is larger than the {limit} bytes that server.max_body allows"
            stream: Any = request.stream
            stream.request_max_size = stream.protocol.request_max_size = _SWALLOWED_BYTES
            error: PlimsollError = BodyTooLarge(text)
        else:
            error = HeadersTooLarge(
                f"the request's headers are larger than {request.app.config.REQUEST_MAX_HEADER_SIZE} bytes"
            )
        return self._respond(request, error.status, envelope(error))

    def _of_sanic(self, request: Request[Any, Any], error: SanicException) -> HTTPResponse:
        status = error.status_code or 500
        text = str(error)
        if isinstance(error, NotFound):
            text = f"there is no {request.path} here"
        elif isinstance(error, MethodNotAllowed):
            text = f"{request.path} does not take {request.method}"
        kind = "invalid_request_error" if status < 500 else "server_error"
        code = _CODES.get(status, "unavailable" if status == 503 else "internal_error")
        body = {"error": {"message": text, "type": kind, "param": None, "code": code}}
        return self._respond(request, status, body, {key: str(value) for key, value in error.headers.items()})

    def _respond(
        self, request: Request[Any, Any], status: int, body: Any, headers: dict[str, str] | None = None
    ) -> HTTPResponse:
        request.app.ctx.state.recorder.error(body["error"]["code"])
        for prefix, shape in self._formats:
            if request.path.startswith(prefix):
                status, body = shape(status, body["error"])
                break
        return respond(status, body, headers)


def respond(status: int, body: Any, headers: dict[str, str] | None = None) -> HTTPResponse:
    """A JSON response."""
    return raw(msgspec.json.encode(body), status, headers, "application/json")


def _retry_after(seconds: float | None) -> dict[str, str]:
    return {} if seconds is None else {"Retry-After": str(max(1, math.ceil(seconds)))}


def _headers(error: PlimsollError) -> dict[str, str]:
    # The official clients retry after every 5xx unless this header says no.
    more = {"x-should-retry": "false"} if isinstance(error, NeverFits | LoadFailed) else {}
    if isinstance(error, Unauthorized):
        more = {"WWW-Authenticate": "Bearer"}
    return more | _retry_after(error.retry_after_s)
