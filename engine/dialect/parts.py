"""What an answer consists of: reasoning, the answer proper, calls of tools."""

from dataclasses import dataclass, field
from typing import NamedTuple, Self


class CallPiece(NamedTuple):
    """``name`` begins a new call; ``arguments`` are characters of its JSON."""

    name: str
    arguments: str


@dataclass(slots=True)
class Parts:
    """What a piece of text made certain; ``calls`` holds (index, piece)."""

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[int, CallPiece]] = field(default_factory=list)

    def check(self) -> None:
        """Raises ``UnicodeEncodeError`` for half a character (a lone surrogate), which no frame can carry."""
        for text in (self.text, self.reasoning, *(part for _, piece in self.calls for part in piece)):
            text.encode()

    def __iadd__(self, later: "Parts") -> Self:
        self.text += later.text
        self.reasoning += later.reasoning
        self.calls += later.calls
        return self
