"""Request bodies: decoded into structs, measured, refused with the parameter's name, its value and what it may be."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from sanic.exceptions import SanicException

from plimsoll.config import LimitsConfig
from plimsoll.engine.protocol import EmbedRequest, Request, RerankRequest
from plimsoll.errors import BadRequest, BodyTooLarge, PromptTooLarge
from plimsoll.http.limits.body_budget import HttpRequest
from plimsoll.validation import find, take_apart

_NOTHING: Mapping[str, str] = {}
# Free JSON (a schema, a tool's arguments) is walked again by encoders, templates and grammars, which have less stack
# left than the decoder had.
_MAX_NESTING = 100
_MAX_VALUES = 100_000
# In a whole body. A request for embeddings may have a million token ids.
_MOST_BOXES, _MOST_VALUES = 200_000, 1_200_000
# A string without an end is matched to the end of the body; else each quote behind it would begin another search.
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
# Bytes that a number in a list, and a list or object of one entry, take in Python.
_VALUE_BYTES, _BOX_BYTES = 36, 200
# The first bytes of characters that have four bytes in UTF-8.
_FOUR_BYTES = [bytes([lead]) for lead in range(0xF0, 0xF5)]
MAX_STOPS, MAX_STOP_CHARS = 64, 1000
_encode = msgspec.json.encode
# Up to so many Python values are measured one by one; more are measured faster by encoding them.
_MOST_MEASURED = 2000
# A control character is encoded as \u0001; the longest number as -1.2345678901234567e-300.
_MOST_BYTES_OF_CHARACTER, _MOST_BYTES_OF_NUMBER = 6, 32


def read(request: HttpRequest, decoder: "msgspec.json.Decoder[Any]", allowed: Mapping[str, str] = _NOTHING) -> Any:
    """Decode the body of a request whose answer may take long, and drop the raw body.

    Raises as ``decode`` does, and 415 for a form.
    """
    _refuse_forms(request)
    counts = _check_count(request.body)
    body = _decode(request.body, decoder, allowed)
    request.let_go(_kept_bytes(request.body, *counts))
    _hear_disconnects(request)
    return body


def decode(raw: bytes, decoder: "msgspec.json.Decoder[Any]", allowed: Mapping[str, str] = _NOTHING) -> Any:
    """Decode ``raw``. Raises ``BadRequest``, naming the parameter, for everything that is wrong with it.

    ``allowed`` says what each parameter may be, by its path with ``[]`` for any index. Parameters that it does not name
    are explained in msgspec's words.
    """
    _check_count(raw)
    return _decode(raw, decoder, allowed)


def _decode(raw: bytes, decoder: "msgspec.json.Decoder[Any]", allowed: Mapping[str, str]) -> Any:
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise _explain(error, raw, allowed) from None
    except UnicodeDecodeError as error:
        raise BadRequest(f"the request body is not valid UTF-8: {error.reason}") from None
    except RecursionError:
        raise BadRequest("the request body is nested too deeply") from None
    except msgspec.DecodeError as error:
        what = "is empty" if not raw.strip() else f"is not valid JSON: {error}"
        raise BadRequest(f"the request body {what}") from None


def _check_count(raw: bytes) -> tuple[int, int]:
    """Refuse a body that would become millions of objects: 11 MB of brackets took 600 MB and blocked the loop for 4 s.

    Returns upper bounds of how many lists and objects, and how many values the body holds.
    """
    boxes, values = _boxes(raw), raw.count(b",")
    if boxes <= _MOST_BOXES and values <= _MOST_VALUES:
        return boxes, values
    bare = _STRINGS.sub(b"", raw)  # brackets and commas inside of strings don't count
    for count, most, what in (
        (_boxes(bare), _MOST_BOXES, "lists and objects"),
        (bare.count(b","), _MOST_VALUES, "values"),
    ):
        if count > most:
            raise BodyTooLarge(f"the request body holds {count} {what}, but {most} are the most")
    return _boxes(bare), bare.count(b",")


def _boxes(raw: bytes) -> int:
    return raw.count(b"[") + raw.count(b"{")


def _kept_bytes(raw: bytes, boxes: int, values: int) -> int:
    """An upper bound of the bytes that Python takes for the decoded body.

    One character of four bytes makes every character of its string four bytes wide (PEP 393).
    """
    width = 1
    if not raw.isascii() or (b"\\" in raw and b"\\u" in raw):
        wide = any(lead in raw for lead in _FOUR_BYTES) or re.search(rb"\\u[dD][89abAB]", raw)
        width = 4 if wide else 2
    return width * len(raw) + _VALUE_BYTES * values + _BOX_BYTES * boxes


def check_size(asked: Request, limits: LimitsConfig, param: str) -> None:
    """Refuse a request of more text, messages or tools than the configuration allows.

    ``param`` is what the API calls the text. Raises ``BadRequest`` and ``PromptTooLarge``.
    """
    if isinstance(asked, EmbedRequest):
        _check_bytes(asked.texts, limits, param)
        return
    if isinstance(asked, RerankRequest):
        # A cross encoder reads the query again with each document.
        _check_bytes(asked.documents, limits, param, len(asked.documents) * len(asked.query.encode()))
        return
    _check_number(len(asked.messages), limits.messages, param, "messages")
    _check_number(len(asked.tools), limits.tools, "tools", "tools")
    _check_bytes([asked.messages, asked.prompt, asked.tools, asked.template_kwargs], limits, param)


def _check_number(count: int, most: int, param: str, what: str) -> None:
    if count > most:
        raise refuse(param, f"holds {count} {what}, but {most} are the most (limits.{what} in the configuration)")


def _check_bytes(text: Any, limits: LimitsConfig, param: str, more: int = 0) -> None:
    """The text is measured as JSON: templates and tokenizers have to read at least so many bytes, and ``more``."""
    if surely_within(text, int(limits.prompt) - more):
        return
    size = len(_encode(text)) + more
    if size > limits.prompt:
        raise PromptTooLarge(
            f"{param}: the text has {size} bytes (with tools, as JSON), but {int(limits.prompt)} are the most "
            "(limits.prompt in the configuration); shorten it",
            param=param,
        )


def surely_within(value: Any, most: int) -> bool:
    """Whether ``value`` certainly has at most ``most`` bytes as JSON, judged without encoding it."""
    rest, characters, others = [value], 0, 0
    for one in rest:  # which grows meanwhile
        if isinstance(one, str):
            characters += len(one)
        elif isinstance(one, dict):
            rest += one
            rest += one.values()
        elif isinstance(one, list | tuple):
            rest += one
        elif isinstance(one, msgspec.Struct):
            rest.append(msgspec.structs.asdict(one))
        else:
            others += 1
        if len(rest) > _MOST_MEASURED:
            return False
    # Two brackets or quotes, and a comma or colon, come with each value.
    size = _MOST_BYTES_OF_CHARACTER * characters + _MOST_BYTES_OF_NUMBER * others + 3 * len(rest)
    return size <= most


def refuse(param: str, what: str) -> BadRequest:
    """The error that says ``what`` is wrong with ``param``, for the caller to raise."""
    return BadRequest(f"{param} {what}", param=param)


def check_free(value: Any, param: str) -> None:
    """Raise ``BadRequest`` for free JSON that is too deep, has too many values, or numbers of more than 64 bits."""
    level, values = [value], 0
    for _ in range(_MAX_NESTING):
        if any(type(one) is int and not -(2**63) <= one < 2**64 for one in level):
            raise refuse(param, "has a number of more than 64 bits; write it as a string")
        boxes = [one for one in level if isinstance(one, dict | list)]
        values += sum(map(len, boxes))
        if values > _MAX_VALUES:
            raise refuse(param, f"holds {values} values or more, but {_MAX_VALUES} are the most")
        level = [inner for box in boxes for inner in (box.values() if isinstance(box, dict) else box)]
        if not level:
            return
    raise refuse(param, f"is nested too deeply: {_MAX_NESTING} levels are the most")


def shown(value: Any) -> str:
    """A bad value as JSON, cut short."""
    try:
        text = msgspec.json.encode(value).decode()
    except RecursionError:
        return "nested too deeply to be shown"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _explain(error: msgspec.ValidationError, raw: bytes, allowed: Mapping[str, str]) -> BadRequest:
    """The error for a body that a decoder refused: the parameter's name, its value, what is allowed."""
    fault = take_apart(error)
    param = fault.path
    if fault.missing:
        return _bad(f"{param}.{fault.missing}".lstrip("."), "is missing", allowed)
    if not param:
        return BadRequest("the request body must be a JSON object")
    found, value = _find(param, raw)
    what = f"is {shown(value)}" if found else "has a bad value"
    if found and "of length <=" in fault.expected:
        what = f"has {len(value)} {'characters' if isinstance(value, str) else 'entries'}"
    return _bad(param, what, allowed, fallback=fault.expected)


def _bad(param: str, what: str, allowed: Mapping[str, str], fallback: str = "") -> BadRequest:
    may_be = allowed.get(re.sub(r"\[(\d+|\.\.\.)\]", "[]", param))
    if may_be is None:
        # A struct's or a list's inner key: msgspec's own words, without quotes and without a value of any length.
        if fallback.startswith("Invalid enum value"):
            fallback = "Expected one of the values in /openapi.json"
        may_be = _TYPES.sub(_json_types, fallback.partition(", got")[0].removeprefix("Expected ")) or "present"
    return refuse(param, f"{what}, but must be {may_be}")


_TYPES = re.compile("`([^`]*)`")
_JSON_TYPES = {
    "bool": "a boolean",
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "array": "a list",
    "object": "an object",
}


def _json_types(quoted: re.Match[str]) -> str:
    """The types that msgspec quotes, by the names that JSON has for them."""
    return " or ".join(_JSON_TYPES.get(kind, kind) for kind in quoted[1].split(" | "))


def _find(param: str, raw: bytes) -> tuple[bool, Any]:
    try:
        return find(param, msgspec.json.decode(raw))
    except (ValueError, RecursionError):  # the body is also broken behind the bad value, where the first decoding ended
        return False, None


def _refuse_forms(request: HttpRequest) -> None:
    """Raise 415 for a multipart body. Other types pass: ``curl -d`` calls JSON urlencoded."""
    kind = request.headers.get("content-type", "")
    if kind.lower().startswith("multipart/"):
        text = f"the body must be JSON (Content-Type: application/json), not {kind.partition(';')[0]}"
        raise SanicException(text, status_code=415)


def _hear_disconnects(request: HttpRequest) -> None:
    """Resume reading the socket, which Sanic leaves paused after a large body: a disconnect would not be noticed."""
    if request.transport is not None:
        request.transport.resume_reading()  # type: ignore[attr-defined] # a ReadTransport
