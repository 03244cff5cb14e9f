"""Calls as JSON objects, one after the other or in a list: Hermes and Qwen, Mistral, Llama 3, Granite, Command R.

An object names the tool and has its arguments under one of the keys that families use, or is ``{"TOOL": {...}}``.
Arguments are passed on while they come where the name stood before them.
"""

import json
from typing import Any

from plimsoll.engine.dialect.calls.writing import Calls, NoCall
from plimsoll.engine.dialect.mending import NotJson, mend_value
from plimsoll.engine.dialect.template_source import Reading, Source

_NAMES = frozenset({"name", "tool_name", "function_name", "function", "tool", "recipient_name"})
_ARGUMENTS = frozenset({"arguments", "parameters", "args", "params", "input", "tool_input", "kwargs"})
_OTHERS = frozenset({"type", "id", "tool_call_id", "call_id", "index"})


def read_json_calls(source: Source, calls: Calls, ends: tuple[str, ...] = ()) -> Reading[bool]:
    """Read objects up to one of ``ends``, or to what is no further object; whether an end was found.

    Raises ``NoCall`` where the first is none.
    """
    yield from source.space()
    if (yield from source.peek()) == "[":
        source.at += 1
        yield from source.space()
    if (yield from source.peek()) != "{":
        raise NoCall
    first = True
    while (yield from source.peek()) == "{":
        begin = source.at
        try:
            yield from _read_one(source, calls)
        except NoCall:
            if first:
                source.at = begin
                raise
        first = False
        yield from source.space(",;}])")
    return bool((yield from source.take(*ends))) if ends else False


def _read_one(source: Source, calls: Calls) -> Reading[None]:
    source.at += 1
    one = _Object(source, calls)
    while True:
        yield from source.space(",")
        letter = yield from source.peek()
        if letter == "}":
            source.at += 1
            break
        if not letter or letter in "<`":
            break
        yield from one.read_pair()
    one.end()


class _Object:
    """An object that may be a call: what of it is known so far."""

    def __init__(self, source: Source, calls: Calls) -> None:
        self._source = source
        self._calls = calls
        self._name = ""
        self._arguments: Any = None
        self._passed = False

    def read_pair(self) -> Reading[None]:
        """A key with its value. Raises ``NoCall`` for a key that no call has."""
        source, calls = self._source, self._calls
        key = yield from _value(source)
        yield from source.space()
        if (yield from source.take(":")):
            yield from source.space()
        elif not source.ended:
            raise NoCall
        if not isinstance(key, str) or (calls.only_offered and not _may_belong(key, calls)):
            raise NoCall  # said early, for the text may be a long answer
        opens = (yield from source.peek()) == "{"
        known = self._name and key in _ARGUMENTS
        if opens and not self._passed and (known or (not self._name and calls.offered(key))):
            write = calls.begin(self._name or key)
            self._passed = True
            yield from mend_value(source, write)
            return
        value = yield from _value(source)
        if key in _ARGUMENTS:
            self._arguments = value
        elif key in _NAMES:
            self._named(value)

    def _named(self, value: Any) -> None:
        if isinstance(value, dict):
            self._name = self._name or next(
                (value[one] for one in value if one in _NAMES and isinstance(value[one], str)), ""
            )
            self._arguments = next((value[one] for one in value if one in _ARGUMENTS), self._arguments)
        elif isinstance(value, str):
            self._name = self._name or value
        if self._calls.only_offered and not self._calls.offered(self._name):
            raise NoCall

    def end(self) -> None:
        """Pass the call on where that was not done while it came. Raises ``NoCall`` where it is none."""
        if not self._passed:
            self._calls.whole(self._name, self._arguments)


def _may_belong(key: str, calls: Calls) -> bool:
    return key in _NAMES or key in _ARGUMENTS or key in _OTHERS or bool(calls.offered(key))


def _value(source: Source) -> Reading[Any]:
    """Any value; None where it can't be read."""
    written: list[str] = []
    try:
        yield from mend_value(source, written.append)
        return json.loads("".join(written))
    except NotJson:
        source.at += 1 if source.at < len(source.text) else 0
        return None
    except (ValueError, RecursionError):
        return None
