"""The bodies of Ollama's chat, generate and embed, checked, and what the engine gets of them."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from plimsoll.engine.protocol import MAX_INPUTS, ChatRequest, EmbedRequest, Format, Tool
from plimsoll.http.body import check_free, read, refuse
from plimsoll.http.front import AnyRequest
from plimsoll.http.ollama.messages import Message, ToolBody, plain_message, refuse_images
from plimsoll.http.ollama.options import ALLOWED as _OPTIONS_ALLOWED
from plimsoll.http.ollama.options import Duration, Options, keep_alive_s, limits, sampling


class ModelBody(msgspec.Struct, kw_only=True):
    """What every body has. Null means the default everywhere; unknown keys are ignored."""

    model: Annotated[str, Meta(min_length=1)]
    keep_alive: float | Duration | None = None

    @property
    def keep_alive_s(self) -> float | None:
        """Seconds, ``inf`` for ever, None where it was not said."""
        return keep_alive_s(self.keep_alive)


class AnswerBody(ModelBody, kw_only=True):
    """What chat and generate have in common."""

    stream: bool | None = None
    options: Options | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    think: bool | Literal["low", "medium", "high"] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class ChatBody(AnswerBody, kw_only=True):
    messages: list[Message] | None = None
    tools: list[ToolBody] | None = None


class GenerateBody(AnswerBody, kw_only=True):
    """``context`` and ``template`` are ignored, as every model here has its own template."""

    prompt: str | None = None
    system: str | None = None
    suffix: str | None = None
    raw: bool | None = None
    images: list[Any] | None = None


class EmbedBody(ModelBody, kw_only=True):
    """A text that is too long is cut, unless ``truncate`` is false."""

    input: str | Annotated[list[str], Meta(max_length=MAX_INPUTS)] = []
    truncate: bool | None = None
    dimensions: Annotated[int, Meta(ge=1, lt=2**31)] | None = None


class EmbeddingsBody(ModelBody, kw_only=True):
    prompt: str | None = None


_ALLOWED = _OPTIONS_ALLOWED | {
    "model": "a model's name",
    "stream": "true or false",
    "messages": "a list of messages",
    "messages[].role": "system, user, assistant or tool",
    "messages[].content": "a string",
    "messages[].tool_calls[].function.arguments": "an object",
    "tools": "a list of tools",
    "tools[].function.name": "a function's name",
    "tools[].function.parameters": "a JSON schema",
    "format": '"json" or a JSON schema',
    "think": "true, false, low, medium or high",
    "logprobs": "true or false",
    "top_logprobs": "an integer from 0 to 20",
    "prompt": "a string",
    "system": "a string",
    "raw": "true or false",
    "input": f"a string or a list of up to {MAX_INPUTS} strings",
    "input[]": "a string",
    "dimensions": "an integer of 1 or more",
}
_chats, _generates = msgspec.json.Decoder(ChatBody), msgspec.json.Decoder(GenerateBody)
_embeds, _embeddings = msgspec.json.Decoder(EmbedBody), msgspec.json.Decoder(EmbeddingsBody)


def parse_chat(request: AnyRequest) -> ChatBody:
    """The body, checked. Raises ``BadRequest`` naming the parameter and what it may be, as the others."""
    body: ChatBody = read(request, _chats, _ALLOWED)
    return body


def parse_generate(request: AnyRequest) -> GenerateBody:
    body: GenerateBody = read(request, _generates, _ALLOWED)
    return body


def parse_embed(request: AnyRequest) -> EmbedBody:
    body: EmbedBody = read(request, _embeds, _ALLOWED)
    return body


def parse_embeddings(request: AnyRequest) -> EmbeddingsBody:
    body: EmbeddingsBody = read(request, _embeddings, _ALLOWED)
    return body


def chat_request(body: ChatBody) -> ChatRequest:
    """What the engine gets. Raises ``BadRequest`` for images."""
    messages = [plain_message(message, f"messages[{index}]") for index, message in enumerate(body.messages or ())]
    functions = [tool.function for tool in body.tools or ()]
    for index, one in enumerate(functions):
        check_free(one.parameters, f"tools[{index}].function.parameters")
    tools = tuple(Tool(one.name, one.description or "", one.parameters or {}) for one in functions)
    return _answer(body, messages=messages, tools=tools)


def generate_request(body: GenerateBody) -> ChatRequest:
    """What the engine gets. Raises ``BadRequest`` for a suffix or images."""
    if body.suffix:
        raise refuse("suffix", "is not supported here; leave it out")
    refuse_images(body.images, "images")
    if body.raw:
        return _answer(body, messages=[], prompt=body.prompt)
    system = [{"role": "system", "content": body.system}] if body.system else []
    return _answer(body, messages=[*system, {"role": "user", "content": body.prompt or ""}])


def embed_request(body: EmbedBody) -> EmbedRequest:
    """What the engine gets."""
    texts = [body.input] if isinstance(body.input, str) else body.input
    return EmbedRequest(texts, dimensions=body.dimensions, truncate=body.truncate is not False)


def _answer(body: AnswerBody, **fields: Any) -> ChatRequest:
    options = body.options or Options()
    max_tokens, stop = limits(options)
    think = body.think
    return ChatRequest(
        sampling=sampling(options),
        max_tokens=max_tokens,
        stop=stop,
        format=_format(body.format),
        thinking=None if think is None else bool(think),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        template_kwargs={"reasoning_effort": think} if isinstance(think, str) else {},
        **fields,
    )


def _format(form: str | dict[str, Any] | None) -> Format | None:
    if isinstance(form, dict):
        check_free(form, "format")
        return Format(form)
    return Format() if form else None
