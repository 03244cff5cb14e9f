"""Request bodies: decoded by structs, refused with the parameter's name, its value and what it may be."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from sanic.exceptions import SanicException

from plimsoll.errors import BadRequest, BodyTooLarge
from plimsoll.http.front import AnyRequest

_NOTHING: Mapping[str, str] = {}
# Free JSON is walked again by encoders, templates and grammars, each with less stack left than the decoder had.
_MAX_NESTING = 100
_MAX_VALUES = 100_000
# Of a whole body; a request for embeddings may have a million token ids.
_MOST_BOXES, _MOST_VALUES = 200_000, 1_200_000
# One without an end is matched to the end, or each of its quotes would begin a search of its own.
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
MAX_STOPS, MAX_STOP_CHARS = 64, 1000


def read(request: AnyRequest, decoder: "msgspec.json.Decoder[Any]", allowed: Mapping[str, str] = _NOTHING) -> Any:
    """The body of a request that is going to wait for an answer. Raises as ``decode`` does, and 415 for a form."""
    _refuse_forms(request)
    body = decode(request.body, decoder, allowed)
    _hear_disconnects(request)
    return body


def decode(raw: bytes, decoder: "msgspec.json.Decoder[Any]", allowed: Mapping[str, str] = _NOTHING) -> Any:
    """``raw`` decoded, with every way it can be wrong as ``BadRequest``.

    ``allowed`` says what a parameter may be, by its path with ``[]`` for any index; msgspec's words are the fallback.
    """
    _check_count(raw)
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


def _check_count(raw: bytes) -> None:
    """Refuse what would become millions of objects: 11 MB of brackets took 600 MB and held all requests up for 4 s."""
    if _boxes(raw) <= _MOST_BOXES and raw.count(b",") <= _MOST_VALUES:
        return
    bare = _STRINGS.sub(b"", raw)  # texts may hold what they like
    for count, most, what in (
        (_boxes(bare), _MOST_BOXES, "lists and objects"),
        (bare.count(b","), _MOST_VALUES, "values"),
    ):
        if count > most:
            raise BodyTooLarge(f"the request body holds {count} {what}, but {most} are the most")


def _boxes(raw: bytes) -> int:
    return raw.count(b"[") + raw.count(b"{")


def refuse(param: str, what: str) -> BadRequest:
    """The parameter's name and what is wrong with it, to be raised."""
    return BadRequest(f"{param} {what}", param=param)


def check_free(value: Any, param: str) -> None:
    """Refuse free JSON that could not be passed on: too deep, too many values, or numbers of more than 64 bits."""
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
    """The message of msgspec turned round."""
    text, _, where = str(error).partition(" - at ")
    param = where.strip("`").removeprefix("$").lstrip(".")
    if missing := re.search(r"missing required field `(.+)`", text):
        return _bad(f"{param}.{missing[1]}".lstrip("."), "is missing", allowed)
    if not param:
        return BadRequest("the request body must be a JSON object")
    found, value = _at(param, raw)
    what = f"is {shown(value)}" if found else "has a bad value"
    if found and "of length <=" in text:
        what = f"has {len(value)} {'characters' if isinstance(value, str) else 'entries'}"
    return _bad(param, what, allowed, fallback=text)


def _bad(param: str, what: str, allowed: Mapping[str, str], fallback: str = "") -> BadRequest:
    may_be = allowed.get(re.sub(r"\[(\d+|\.\.\.)\]", "[]", param))
    if may_be is None:
        # A struct's or a list's inner key: msgspec's own words, without quotes and without a value of any length.
        if fallback.startswith("Invalid enum value"):
            fallback = "Expected one of the values in /openapi.json"
        may_be = fallback.partition(", got")[0].removeprefix("Expected ").replace("`", "") or "present"
    return refuse(param, f"{what}, but must be {may_be}")


def _at(param: str, raw: bytes) -> tuple[bool, Any]:
    if "[...]" in param:
        return False, None
    try:
        value = msgspec.json.decode(raw)
        for name, index in re.findall(r"(\w+)|\[(\d+)\]", param):
            value = value[name] if name else value[int(index)]
    except (ValueError, LookupError, TypeError, RecursionError):
        return False, None
    return True, value


def _refuse_forms(request: AnyRequest) -> None:
    """Anything may call itself JSON (curl -d says urlencoded), but a multipart body can't be it."""
    kind = request.headers.get("content-type", "")
    if kind.lower().startswith("multipart/"):
        text = f"the body must be JSON (Content-Type: application/json), not {kind.partition(';')[0]}"
        raise SanicException(text, status_code=415)


def _hear_disconnects(request: AnyRequest) -> None:
    """Sanic stops reading the socket during a large body and stays so: the client's going would not be noticed."""
    if request.transport is not None:
        request.transport.resume_reading()  # type: ignore[attr-defined] # a ReadTransport
