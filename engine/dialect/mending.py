"""JSON as models write it, passed on as JSON that everybody can read.

What is valid passes as it is. What is not is mended where it is clear what was meant: raw line breaks and unescaped
quotes in strings, unknown escapes, single quotes, Python's words, trailing commas, bare keys, and an end that is
missing. What is passed on can be made whole at any moment, so it may be shown while it comes.
"""

import json
import re
from collections.abc import Callable
from typing import Literal

from plimsoll.engine.dialect.template_source import Reading, Source

Write = Callable[[str], None]

_PLAIN = {'"': re.compile(r'[^"\\\x00-\x1f]+'), "'": re.compile(r"[^'\"\\\x00-\x1f]+")}
_ESCAPES = frozenset('"\\/bfnrtu')
_HEX = re.compile(r"[0-9a-fA-F]{4}")
_WORD = re.compile(r"[^\s,:()\[\]{}\"']+")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_WORDS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
_CLOSES = {"{": "}", "[": "]", "(": ")"}
_MOST_DEPTH = 64


class NotJson(Exception):
    """What stands there can't be meant as a JSON value."""


def mend_value(source: Source, write: Write, *, python: bool = False) -> Reading[bool]:
    """Read one value and write it as JSON; false where the text ended first, and then what was open is closed.

    ``python`` is for values of Python's calls, where tuples are lists. Raises ``NotJson`` where no value begins there;
    then nothing was written.
    """
    return _Mender(source, write, python=python).run()


class _Mender:
    """``open`` are the open brackets, ``wants`` is what may stand here, ``held`` is a comma that is not yet written."""

    def __init__(self, source: Source, write: Write, *, python: bool) -> None:
        self._source = source
        self._write = write
        self._python = python
        self._open: list[str] = []
        self._wants: Literal["value", "key", "colon", "comma"] = "value"
        self._held = ""

    def run(self) -> Reading[bool]:
        while True:
            space = yield from self._source.space()
            letter = yield from self._source.peek()
            if not letter or (letter in "<`" and self._open and self._wants in ("comma", "key")):
                self._close()  # the text ends, or the mark of the call's end follows
                return False
            if self._open and letter == _CLOSES[self._open[-1]]:
                if self._end(space):
                    return True
            elif self._wants == "comma":
                self._comma(space, letter)
            elif self._wants == "colon":
                self._source.at += letter in ":="
                self._write(space + ":")
                self._wants = "value"
            elif self._wants == "key":
                yield from self._key(space, letter)
            else:
                done = yield from self._value(space, letter)
                if done is not None:
                    return done

    def _end(self, space: str) -> bool:
        """A bracket closes; whether it was the outermost."""
        self._source.at += 1
        if self._wants == "value" and self._open[-1] == "{":
            self._write("null")
        self._write(space + _end(self._open.pop()))
        self._wants, self._held = "comma", ""
        return not self._open

    def _comma(self, space: str, letter: str) -> None:
        if letter in "}])":
            self._source.at += 1  # one bracket too many or of the wrong kind
            return
        comma = letter in ",;"  # else it was left out
        self._source.at += comma
        self._held = "," + (space if comma else "")
        self._wants = "key" if self._open[-1] == "{" else "value"

    def _key(self, space: str, letter: str) -> Reading[None]:
        if letter in ",:()[]{":
            self._source.at += 1  # nothing that a key could begin with
            return
        self._write(self._held + space)
        self._held = ""
        if letter in "\"'":
            yield from _string(self._source, self._write)
        else:
            self._write(json.dumps((yield from _word(self._source)), ensure_ascii=False))
        self._wants = "colon"

    def _value(self, space: str, letter: str) -> Reading[bool | None]:
        """Whether the whole value is complete; None where it goes on."""
        if letter in ",:)]}" or (letter == "(" and not self._python):
            if not self._open:
                raise NotJson(letter)
            self._source.at += 1  # one comma or bracket too many
            return None
        self._write(self._held + space)
        self._held = ""
        if letter in _CLOSES:
            return self._begin(letter)
        self._wants = "comma"
        if letter not in "\"'":
            yield from _bare(self._source, self._write)
        elif not (yield from _string(self._source, self._write)):
            self._close()
            return False
        return None if self._open else True

    def _begin(self, letter: str) -> bool | None:
        self._source.at += 1
        if len(self._open) == _MOST_DEPTH:
            self._write("null")
            self._wants = "comma"
            self._close()
            return False
        self._open.append(letter)
        self._write("{" if letter == "{" else "[")
        self._wants = "key" if letter == "{" else "value"
        return None

    def _close(self) -> None:
        """Make what was written whole."""
        inside = bool(self._open) and self._open[-1] != "{"
        if self._wants == "colon":
            self._write(":null")
        elif self._wants == "value" and not inside:
            self._write("null")
        for bracket in reversed(self._open):
            self._write(_end(bracket))


def mended(text: str, *, python: bool = False) -> str:
    """``text`` as one JSON value. Raises ``NotJson`` where it is none, or more than one."""
    source = Source()
    source.text, source.ended = text, True
    written: list[str] = []
    for _ in mend_value(source, written.append, python=python):
        pass
    if source.text[source.at :].strip():
        raise NotJson(text)
    result = "".join(written).strip()
    try:
        json.loads(result)
    except ValueError as error:
        raise NotJson(text) from error
    return result


def _end(bracket: str) -> str:
    return "}" if bracket == "{" else "]"


def _word(source: Source) -> Reading[str]:
    begin = source.at
    while True:
        match = _WORD.match(source.text, begin)
        end = match.end() if match else begin
        if end < len(source.text) or source.ended:
            source.at = end
            return source.text[begin:end]
        yield


def _bare(source: Source, write: Write) -> Reading[None]:
    word = yield from _word(source)
    if word in _WORDS:
        write(_WORDS[word])
    elif word in ("NaN", "Infinity", "-Infinity"):
        write("null")
    elif _NUMBER.fullmatch(word):
        write(word)
    elif number := _number(word):
        write(number)
    else:
        write(json.dumps(word, ensure_ascii=False))


def _number(word: str) -> str:
    """Numbers as Python and people write them: +1, .5, 1., 1_000, 0x1f."""
    try:
        return str(int(word, 0))
    except ValueError:
        pass
    try:
        value = float(word)
    except ValueError:
        return ""
    return repr(value) if value == value and abs(value) != float("inf") else ""  # noqa: PLR0124 - not a number


def _string(source: Source, write: Write) -> Reading[bool]:
    """A string up to the quote that ends it: the one that a comma, a colon or a bracket follows."""
    quote = source.text[source.at]
    source.at += 1
    write('"')
    plain = _PLAIN[quote]
    while True:
        match = plain.match(source.text, source.at)
        if match:
            write(match[0])
            source.at = match.end()
        if not (yield from source.has(1)):
            write('"')
            return False
        letter = source.text[source.at]
        if letter == quote:
            if (yield from _ends(source)):
                source.at += 1
                write('"')
                return True
            source.at += 1
            write('\\"' if quote == '"' else quote)
        elif letter == "\\":
            yield from _escape(source, write)
        elif letter == '"':
            source.at += 1
            write('\\"')
        elif letter < " ":
            source.at += 1
            write(json.dumps(letter)[1:-1])


def _ends(source: Source) -> Reading[bool]:
    """Whether the quote that comes next ends its string."""
    at = source.at
    source.at += 1
    yield from source.space()
    letter = yield from source.peek()
    source.at, following = at, letter
    return not following or following in ",:}])<`"


def _escape(source: Source, write: Write) -> Reading[None]:
    """A backslash that escapes nothing that JSON knows stands for itself."""
    yield from source.has(2)
    letter = source.text[source.at + 1 : source.at + 2]
    if letter == "u":
        yield from source.has(6)
        if not _HEX.fullmatch(source.text[source.at + 2 : source.at + 6]):
            letter = ""
    if letter == "'":
        write("'")
        source.at += 2
    elif letter and letter in _ESCAPES:
        write("\\" + letter)
        source.at += 2
    else:
        write("\\\\")
        source.at += 1
