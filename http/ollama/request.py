"""The bodies of Ollama's chat, generate and embed, checked, and their translation into the engine's requests."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from plimsoll.engine.protocol import MAX_INPUTS, ChatRequest, EmbedRequest, Format, Tool
from plimsoll.http import left_out
from plimsoll.http.body import check_free, refuse
from plimsoll.http.content import Part, text_of
from plimsoll.http.ollama.options import ALLOWED as _OPTIONS_ALLOWED
from plimsoll.http.ollama.options import Duration, Options, given, keep_alive_s, limits, sampling

_ROLES = {"developer": "system", "function": "tool"}


class CalledFunction(msgspec.Struct):
    name: str
    arguments: dict[str, Any] | str | None = None


class ToolCall(msgspec.Struct):
    function: CalledFunction
    id: str | None = None


class Message(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class Function(msgspec.Struct):
    name: Annotated[str, Meta(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolBody(msgspec.Struct):
    function: Function | None = None
    type: str | None = None


def plain_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """The messages as chat templates read them. Raises ``BadRequest`` for images in what the user asks now."""
    answered = max((index + 1 for index, one in enumerate(messages) if one.role == "assistant"), default=0)
    return [_plain(one, f"messages[{index}]", asked=index >= answered) for index, one in enumerate(messages)]


def _plain(message: Message, path: str, *, asked: bool) -> dict[str, Any]:
    role = _ROLES.get(message.role, message.role)
    images = [Part("image")] * len(message.images or ())
    seen = text_of(images, f"{path}.images", asked=asked and role == "user")
    content = "\n".join(filter(None, [message.content, seen]))
    plain: dict[str, Any] = {"role": role, "content": content}
    if message.thinking:
        plain["reasoning_content"] = message.thinking
    if message.tool_name:
        plain["name"] = message.tool_name
    if message.tool_call_id:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        for index, call in enumerate(message.tool_calls):
            check_free(call.function.arguments, f"{path}.tool_calls[{index}].function.arguments")
        plain["tool_calls"] = [
            {"id": call.id or f"call_{index}", "type": "function", "function": msgspec.to_builtins(call.function)}
            for index, call in enumerate(message.tool_calls)
        ]
    return plain


class ModelBody(msgspec.Struct, kw_only=True):
    """What every body has. Null means the default everywhere; unknown keys are ignored."""

    model: str = ""
    keep_alive: float | Duration | None = None

    @property
    def keep_alive_s(self) -> float | None:
        """Seconds, ``inf`` for ever, None where the client did not say."""
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


ALLOWED = _OPTIONS_ALLOWED | {
    "model": "a model's name",
    "stream": "true or false",
    "messages": "a list of messages",
    "messages[].role": "system, user, assistant, tool, developer or function",
    "messages[].content": "a string",
    "messages[].tool_calls[].function.arguments": "an object, or JSON as text",
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
chat_decoder, generate_decoder = msgspec.json.Decoder(ChatBody), msgspec.json.Decoder(GenerateBody)
embed_decoder, embeddings_decoder = msgspec.json.Decoder(EmbedBody), msgspec.json.Decoder(EmbeddingsBody)


def chat_request(body: ChatBody) -> ChatRequest:
    """The engine's request for a chat. Raises ``BadRequest`` for images."""
    messages = plain_messages(body.messages or [])
    tools = tuple(filter(None, (_tool(tool, f"tools[{index}]") for index, tool in enumerate(body.tools or ()))))
    goes_on = bool(messages) and messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]
    return _answer(body, messages=messages, tools=tools, continue_last=goes_on)


def _tool(tool: ToolBody, path: str) -> Tool | None:
    """The function that a tool offers; None for a tool of another type, which is left out."""
    if tool.type not in (None, "function"):
        left_out.note("tool", tool.type)
        return None
    if tool.function is None:
        raise refuse(f"{path}.function", "is missing, but must be a function with its name")
    check_free(tool.function.parameters, f"{path}.function.parameters")
    return Tool(tool.function.name, tool.function.description or "", tool.function.parameters or {})


def generate_request(body: GenerateBody) -> ChatRequest:
    """The engine's request; with a suffix it asks for the text between. Raises ``BadRequest`` for images."""
    text_of([Part("image")] * len(body.images or ()), "images", asked=True)
    if body.raw or body.suffix:
        return _answer(body, messages=[], prompt=body.prompt, suffix=body.suffix or "")
    system = [{"role": "system", "content": body.system}] if body.system else []
    return _answer(body, messages=[*system, {"role": "user", "content": body.prompt or ""}])


def embed_request(body: EmbedBody) -> EmbedRequest:
    """The engine's request for vectors."""
    texts = [body.input] if isinstance(body.input, str) else body.input
    return EmbedRequest(texts, dimensions=body.dimensions, truncate=body.truncate is not False)


def _answer(body: AnswerBody, **fields: Any) -> ChatRequest:
    options = body.options or Options()
    max_tokens, stop = limits(options)
    think = body.think
    return ChatRequest(
        sampling=sampling(options),
        given=given(options),
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
