"""What one request may hold, by the configuration. Bounds that never change stand in the structs of the APIs."""

from typing import Any

import msgspec

from plimsoll.config import LimitsConfig
from plimsoll.engine.protocol import ChatRequest, EmbedRequest
from plimsoll.errors import PromptTooLarge
from plimsoll.http.body import refuse

_encode = msgspec.json.encode


def check_chat(asked: ChatRequest, limits: LimitsConfig, param: str = "messages") -> ChatRequest:
    """The same request. Raises ``BadRequest`` or ``PromptTooLarge``; ``param`` is what this API calls the text."""
    _check_count(len(asked.messages), limits.messages, param, "messages")
    _check_count(len(asked.tools), limits.tools, "tools", "tools")
    _check_size([asked.messages, asked.prompt, asked.tools, asked.template_kwargs], limits, param)
    return asked


def check_embed(asked: EmbedRequest, limits: LimitsConfig, param: str = "input") -> EmbedRequest:
    """The same request. Raises ``PromptTooLarge``."""
    _check_size(asked.texts, limits, param)
    return asked


def _check_count(count: int, most: int, param: str, what: str) -> None:
    if count > most:
        raise refuse(param, f"holds {count} {what}, but {most} are the most (limits.{what} in the configuration)")


def _check_size(text: Any, limits: LimitsConfig, param: str) -> None:
    """JSON's bytes are quickly had, and they are what templates and tokenizers have to read at the least."""
    size = len(_encode(text))
    if size > limits.prompt:
        raise PromptTooLarge(
            f"{param}: the text has {size} bytes (with tools, as JSON), but {int(limits.prompt)} are the most "
            "(limits.prompt in the configuration); shorten it",
            param=param,
        )
