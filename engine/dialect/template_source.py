"""An answer's text while it comes: readers are generators that yield where they need more of it.

What a reader decides may depend on the text only, never on where it was cut into pieces: so each question below is
answered when the text that has come is enough for an answer, and not before.
"""

import re
from collections.abc import Callable, Generator, Iterable
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]
"""Yields to wait for more text, and returns what it found."""

_SPACE = re.compile(r"\s*")
_MOST_READ = 1 << 14


class Source:
    """``text[at:]`` is unread; ``ended`` is whether nothing more comes."""

    __slots__ = ("at", "ended", "kept", "text")

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self.kept = 0  # how many readers may go back to where they began

    def add(self, text: str) -> None:
        """More of the answer. What is read is forgotten where nobody may want to go back to it."""
        if self.at > _MOST_READ and not self.kept:
            self.text, self.at = self.text[self.at :], 0
        self.text += text

    def has(self, count: int) -> Reading[bool]:
        """Whether ``count`` more characters are to come."""
        while len(self.text) - self.at < count:
            if self.ended:
                return False
            yield
        return True

    def starts(self, *literals: str) -> Reading[str]:
        """The longest of ``literals`` that the unread text begins with, or nothing."""
        for literal in sorted(literals, key=len, reverse=True):
            while True:
                seen = self.text[self.at : self.at + len(literal)]
                if seen == literal:
                    return literal
                if self.ended or not literal.startswith(seen):
                    break
                yield
        return ""

    def take(self, *literals: str) -> Reading[str]:
        """As ``starts``, and what was found is read."""
        found = yield from self.starts(*literals)
        self.at += len(found)
        return found

    def space(self, letters: str = "") -> Reading[str]:
        """White space, or any of ``letters``, up to the first other character, which has come unless the text ended."""
        pattern = _SPACE if not letters else _run(letters)
        begin = self.at
        while True:
            match = pattern.match(self.text, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.text) or self.ended:
                return self.text[begin : self.at]
            yield

    def peek(self) -> Reading[str]:
        """The next character; empty at the end of the text."""
        return self.text[self.at] if (yield from self.has(1)) else ""

    def until(self, marks: Iterable[str], pass_on: Callable[[str], None]) -> Reading[str | None]:
        """Pass the text before the first of ``marks`` on and read the mark; None where the text ends without one.

        The first is the one that is complete first; of several that end at once the longest counts. What may be the
        begin of a mark is not passed on before that is known.
        """
        marks = tuple(marks)
        begins = beginnings(marks)
        longest = max(map(len, marks), default=1)
        while True:
            if found := self.first(marks, self.at):
                begin, mark = found
                if begin > self.at:
                    pass_on(self.text[self.at : begin])
                self.at = begin + len(mark)
                return mark
            if self.ended:
                safe = len(self.text)
            else:
                safe = len(self.text) - held_back(self.text[max(self.at, len(self.text) - longest) :], begins)
            if safe > self.at:
                pass_on(self.text[self.at : safe])
                self.at = safe
            if self.ended:
                return None
            yield

    def first(self, marks: Iterable[str], begin: int) -> tuple[int, str] | None:
        """Where the mark that is complete first begins, and the mark."""
        best: tuple[int, int, int, str] | None = None
        for mark in marks:
            index = self.text.find(mark, begin)
            if index >= 0:
                best = min(best or (len(self.text) + 1, 0, 0, ""), (index + len(mark), -len(mark), index, mark))
        return (best[2], best[3]) if best else None


@lru_cache(maxsize=64)
def beginnings(marks: tuple[str, ...]) -> frozenset[str]:
    """All proper beginnings of the marks."""
    return frozenset(mark[:length] for mark in marks for length in range(1, len(mark)))


def held_back(text: str, begins: frozenset[str]) -> int:
    """How many characters at the end of ``text`` may be the begin of a mark."""
    for length in range(len(text), 0, -1):
        if text[-length:] in begins:
            return length
    return 0


@lru_cache(maxsize=16)
def _run(letters: str) -> re.Pattern[str]:
    return re.compile(rf"[\s{re.escape(letters)}]*")


def nothing(_: str) -> None:
    """For text that nobody wants."""
