"""The body of a chat completion: validated by structs, refused with the parameter's name and what it may be."""

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from plimsoll.engine.protocol import ChatRequest, Sampling
from plimsoll.errors import BadRequest

_INT64 = 2**63
_TOKENS_MAX = 2**31 - 1
Tokens = Annotated[int, Meta(ge=1, le=_TOKENS_MAX)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Stop = Annotated[str, Meta(min_length=1)]


class Part(msgspec.Struct):
    type: str
    text: str | None = None


class Message(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class ResponseFormat(msgspec.Struct):
    type: str


class Body(msgspec.Struct, kw_only=True):
    """Null means the default everywhere; unknown keys are ignored."""

    model: Annotated[str, Meta(min_length=1)]
    messages: Annotated[list[Message], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=_TOKENS_MAX)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-_INT64, le=_INT64 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=4)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    user: str | None = None
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, float] | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: ResponseFormat | None = None


_ALLOWED = {
    "model": "a model's name",
    "messages": "a list of one or more messages",
    "messages[].role": "system, developer, user, assistant or tool",
    "messages[].content": "a string, a list of text parts or (assistant only) null",
    "stream": "true or false",
    "stream_options": 'an object like {"include_usage": true}',
    "max_tokens": f"an integer from 1 to {_TOKENS_MAX}",
    "max_completion_tokens": f"an integer from 1 to {_TOKENS_MAX}",
    "temperature": "a number from 0 to 2",
    "top_p": "a number above 0, up to 1",
    "top_k": f"an integer from 0 (off) to {_TOKENS_MAX}",
    "min_p": "a number from 0 to 1",
    "seed": "an integer of 64 bits",
    "stop": "a non-empty string or a list of up to 4 of them",
    "stop[]": "a non-empty string",
    "presence_penalty": "a number from -2 to 2",
    "frequency_penalty": "a number from -2 to 2",
    "repetition_penalty": "a number above 0, up to 10",
    "response_format": 'an object like {"type": "text"}',
}
_decoder = msgspec.json.Decoder(Body)


def parse(raw: bytes) -> Body:
    """The body, checked. Raises ``BadRequest`` naming the parameter and what it may be."""
    body: Body = decode(raw, _decoder)
    _refuse_unsupported(body)
    return body


def decode(raw: bytes, decoder: "msgspec.json.Decoder[Any]") -> Any:
    """``raw`` decoded, with every way it can be wrong as ``BadRequest``."""
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise _explain(error, raw) from None
    except UnicodeDecodeError as error:
        raise BadRequest(f"the request body is not valid UTF-8: {error.reason}") from None
    except RecursionError:
        raise BadRequest("the request body is nested too deeply") from None
    except msgspec.DecodeError as error:
        what = "is empty" if not raw.strip() else f"is not valid JSON: {error}"
        raise BadRequest(f"the request body {what}") from None


def chat_request(body: Body) -> ChatRequest:
    """What the engine gets. Raises ``BadRequest`` for content that is not text."""
    sampled = {name: getattr(body, name) for name in Sampling.__struct_fields__}
    return ChatRequest(
        messages=[_message(message, f"messages[{index}]") for index, message in enumerate(body.messages)],
        sampling=Sampling(**{name: value for name, value in sampled.items() if value is not None}),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
    )


def _message(message: Message, path: str) -> dict[str, Any]:
    # Chat templates know system and not developer, which is OpenAI's newer word for it.
    plain: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    plain["content"] = _text(message, path)
    for name in ("name", "tool_call_id", "tool_calls"):
        if (value := getattr(message, name)) is not None:
            plain[name] = value
    return plain


def _text(message: Message, path: str) -> str:
    content = message.content
    if isinstance(content, str):
        return content
    if content is None:
        if message.role == "assistant":
            return ""
        raise _bad(f"{path}.content", "is missing")
    for index, part in enumerate(content):
        if part.type != "text":
            text = f"{path}.content[{index}].type is {_shown(part.type)}, but only text parts are supported"
            raise BadRequest(text, param=f"{path}.content[{index}].type")
        if part.text is None:
            param = f"{path}.content[{index}].text"
            raise BadRequest(f"{param} is missing, but must be a string", param=param)
    return "\n".join(part.text or "" for part in content)


def _refuse_unsupported(body: Body) -> None:
    """What would change the answer is refused, not ignored."""
    form = body.response_format
    unsupported = {
        "n": body.n not in (None, 1),
        "logprobs": bool(body.logprobs),
        "top_logprobs": bool(body.top_logprobs),
        "logit_bias": bool(body.logit_bias),
        "tools": bool(body.tools),
        "functions": bool(body.functions),
        "response_format": form is not None and form.type != "text",
    }
    for name, asked in unsupported.items():
        if asked:
            only = {"n": "; only 1 is", "response_format": '; only {"type": "text"} is'}.get(name, "; leave it out")
            raise BadRequest(f"{name}: this value is not supported yet{only}", param=name)


def _explain(error: msgspec.ValidationError, raw: bytes) -> BadRequest:
    """The message of msgspec turned round: the parameter, its value, what it may be."""
    text, _, where = str(error).partition(" - at ")
    param = where.strip("`").removeprefix("$").lstrip(".")
    if missing := re.search(r"missing required field `(.+)`", text):
        return _bad(f"{param}.{missing[1]}".lstrip("."), "is missing")
    if not param:
        return BadRequest("the request body must be a JSON object")
    found, value = _at(param, raw)
    return _bad(param, f"is {_shown(value)}" if found else "has a bad value", fallback=text)


def _bad(param: str, what: str, fallback: str = "") -> BadRequest:
    allowed = _ALLOWED.get(re.sub(r"\[\d+\]", "[]", param))
    if allowed is None:
        # A struct's or a list's inner key: msgspec's own words, without its quotes.
        allowed = fallback.partition(", got")[0].removeprefix("Expected ").replace("`", "") or "present"
    return BadRequest(f"{param} {what}, but must be {allowed}", param=param)


def _at(param: str, raw: bytes) -> tuple[bool, Any]:
    try:
        value = msgspec.json.decode(raw)
        for name, index in re.findall(r"(\w+)|\[(\d+)\]", param):
            value = value[name] if name else value[int(index)]
    except (ValueError, LookupError, TypeError, RecursionError):
        return False, None
    return True, value


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else f"{text[:57]}..."
