"""Every error Plimsoll answers with: one tree, each with an HTTP status and a machine-readable code.

PlimsollError
├── ConfigError           400   a key in config.yaml that can't be used (at the start, or when it is read again)
├── BadRequest            400   the caller can mend it; names the parameter
│   ├── ContextTooLong    400   prompt longer than the model's context
│   ├── UnknownModel      404
│   ├── BodyTooLarge      413
│   │   └── PromptTooLarge      more text than limits.prompt allows, whatever the model's context
│   └── HeadersTooLarge   431
├── Unauthorized          401   no API key, or none of this server's
├── Forbidden             403   the key's role is too low, or a web page of another origin asks
├── TooManyRequests       429   the key's request rate is used up; Retry-After
├── QueueFull             429   the model's queue is at its bound; Retry-After
├── Unavailable           503   try again later; Retry-After
│   ├── LoadFailed              a model's files can't be fetched, converted or loaded
│   ├── WorkerDied              the model's worker process ended while the request ran
│   ├── ModelUnloaded           the model was unloaded while the request ran
│   ├── InsufficientMemory      carries the memory figures
│   │   └── NeverFits     507   not on this machine, whatever is unloaded
│   └── ShuttingDown
└── InternalError         500
    └── ServerFailed          the server can't serve any more and ends, to be started again
"""

from typing import Any, ClassVar, Self


class PlimsollError(Exception):
    """An error with a sentence for people and a code for programs.

    ``message`` says what happened, with figures, and what to do. ``param`` names the request
    parameter or config key at fault. ``retry_after_s`` is set where trying again can help.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    type: ClassVar[str] = "server_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.details = details or {}

    def fresh(self, retry_after_s: float | None = None) -> Self:
        """An error of its own that says the same, with ``retry_after_s`` in place of the old figure if it is given.

        A raise hangs the frames that it passes on the object that is raised, and with them the request's body.
        """
        after = self.retry_after_s if retry_after_s is None else retry_after_s
        return type(self)(self.message, param=self.param, retry_after_s=after, details=self.details)


class ConfigError(PlimsollError):
    status = 400
    code = "config_error"
    type = "invalid_request_error"


class BadRequest(PlimsollError):
    status = 400
    code = "invalid_value"
    type = "invalid_request_error"


class ContextTooLong(BadRequest):
    code = "context_length_exceeded"


class UnknownModel(BadRequest):
    status = 404
    code = "model_not_found"


class BodyTooLarge(BadRequest):
    status = 413
    code = "body_too_large"


class HeadersTooLarge(BadRequest):
    status = 431
    code = "headers_too_large"


class Unauthorized(PlimsollError):
    status = 401
    code = "invalid_api_key"
    type = "invalid_request_error"


class Forbidden(PlimsollError):
    status = 403
    code = "forbidden"
    type = "permission_error"


class TooManyRequests(PlimsollError):
    status = 429
    code = "rate_limit_exceeded"
    type = "rate_limit_error"


class PromptTooLarge(BodyTooLarge):
    code = "prompt_too_large"


class QueueFull(PlimsollError):
    status = 429
    code = "queue_full"
    type = "rate_limit_error"


class Unavailable(PlimsollError):
    status = 503
    code = "unavailable"


class LoadFailed(Unavailable):
    code = "load_failed"


class WorkerDied(Unavailable):
    code = "worker_died"


class ModelUnloaded(Unavailable):
    code = "model_unloaded"


class InsufficientMemory(Unavailable):
    code = "insufficient_memory"
    type = "insufficient_memory"


class NeverFits(InsufficientMemory):
    status = 507
    code = "never_fits"


class ShuttingDown(Unavailable):
    code = "shutting_down"


class InternalError(PlimsollError):
    pass


class ServerFailed(InternalError):
    pass
