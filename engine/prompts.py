"""From a chat request to the tokens of its prompt. No MLX arrays: this runs beside the step thread."""

from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from mlx_lm.tokenizer_utils import TokenizerWrapper

from plimsoll.engine.kv_budget import Wish
from plimsoll.engine.protocol import ChatRequest, Sampling
from plimsoll.errors import BadRequest, ContextTooLong

# What a template written for other messages raises: its author tests none of them.
_TEMPLATE_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request ready for the batch; ``max_tokens`` fits in the context, ``open_ended`` if the client gave none."""

    tokens: list[int]
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]
    open_ended: bool

    @property
    def wish(self) -> Wish:
        return Wish(len(self.tokens), self.max_tokens, self.open_ended)


def prepare(request: ChatRequest, tokenizer: TokenizerWrapper, context: int) -> Prompt:
    """Apply the chat template and tokenise; ``context`` is prompt and answer together, in tokens.

    Raises ``BadRequest`` for messages this model can't read, ``ContextTooLong`` where no room is left for an answer.
    """
    messages = [_plain(message) for message in request.messages]
    if not messages:
        raise BadRequest("messages is empty; send at least one message.", param="messages")
    tokens = _tokens(messages, tokenizer)
    room = context - len(tokens)
    if room <= 0:
        raise ContextTooLong(
            f"The prompt has {len(tokens)} tokens and the model's context is {context} tokens, which must also hold "
            f"the answer. Shorten the messages by at least {1 - room} tokens.",
            param="messages",
        )
    wanted = room if request.max_tokens is None else request.max_tokens
    if wanted < 1:
        raise BadRequest(f"max_tokens is {wanted}; it must be at least 1.", param="max_tokens")
    stop = tuple(text for text in request.stop if text)
    return Prompt(tokens, min(wanted, room), request.sampling, stop, request.max_tokens is None)


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """The same message with its content as one string, which is what every template reads."""
    if not isinstance(message.get("role"), str):
        raise BadRequest("every message needs a role, such as user or assistant.", param="messages")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_part(part) for part in content)
    elif content is None:
        content = ""
    elif not isinstance(content, str):
        raise BadRequest(
            f"content is a {type(content).__name__}; it must be a string or a list of text parts.", param="messages"
        )
    return {**message, "content": content}


def _part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind != "text":
        raise BadRequest(
            f"a message has a part of type {kind}; this model reads text only. Send parts of type text.",
            param="messages",
        )
    if not isinstance(text := part.get("text"), str):
        raise BadRequest("a text part has no text; its key text must be a string.", param="messages")
    return text


def _tokens(messages: list[dict[str, Any]], tokenizer: TokenizerWrapper) -> list[int]:
    if not tokenizer.has_chat_template:
        lines = [f"{message['role']}: {message['content']}" for message in messages]
        return list(tokenizer.encode("\n".join([*lines, "assistant:"])))
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except _TEMPLATE_ERRORS as error:
        raise BadRequest(f"The model's chat template refuses these messages: {error}", param="messages") from error
    # The template writes its own special tokens.
    return list(tokenizer.encode(text, add_special_tokens=False))
