"""What readers of calls write to: calls go to the client, or are kept until it is clear what they are."""

import json
from collections.abc import Callable
from typing import Any

from plimsoll.engine.dialect.mending import NotJson, mended
from plimsoll.engine.dialect.parts import CallPiece
from plimsoll.engine.protocol import Tool


class NoCall(Exception):
    """What was read is no call after all; nothing of it was passed on."""


class Calls:
    """The calls of one answer.

    ``held`` calls are kept until ``release``; then and where ``only_offered`` is set a call of another tool is none.
    Where only one call may be made, further ones are read and dropped.
    """

    def __init__(self, tools: tuple[Tool, ...], *, parallel: bool) -> None:
        self.tools = tools
        self.count = 0
        self.only_offered = False
        self.held = False
        self._names = {tool.name: tool for tool in tools}
        self._parallel = parallel
        self._dropped = False
        self._kept: list[CallPiece] = []
        self._out: list[tuple[int, CallPiece]] = []

    @property
    def full(self) -> bool:
        """Whether no further call may be made."""
        return self.count > 0 and not self._parallel

    def take(self) -> list[tuple[int, CallPiece]]:
        """What is certain since the last time."""
        taken, self._out = self._out, []
        return taken

    def hold(self) -> None:
        """Keep what follows, and take calls of offered tools only, until ``release``."""
        self.held = self.only_offered = True

    def release(self, *, wanted: bool) -> None:
        """Pass the held calls on, or forget them."""
        kept, self._kept = self._kept, []
        self.held = self.only_offered = False
        for piece in kept if wanted else []:
            self._put(piece)

    def any_held(self) -> bool:
        return bool(self._kept)

    def begin(self, name: str) -> Callable[[str], None]:
        """A new call, whose arguments are then written piece by piece. Raises ``NoCall`` for what is no tool."""
        known = self.offered(name)
        if not name or (self.only_offered and not known):
            raise NoCall
        self._put(CallPiece(known or name, ""))
        return lambda piece: self._put(CallPiece("", piece)) if piece else None

    def whole(self, name: str, arguments: Any) -> None:
        """A call with its arguments: an object, or JSON's text of one. Raises ``NoCall`` for what is no object."""
        text = object_text(arguments)
        self.begin(name)(text)

    def offered(self, name: str) -> str:
        """The offered tool that ``name`` means: itself, or the one that it names with a prefix or in other letters."""
        name = name.strip().strip("\"'`")
        for short in (
            name,
            name.removeprefix("functions."),
            name.removeprefix("default_api."),
            name.rpartition(":")[2],
        ):
            if short in self._names:
                return short
        loose = [known for known in self._names if _loose(known) == _loose(name)]
        return loose[0] if len(loose) == 1 else ""

    def _put(self, piece: CallPiece) -> None:
        if self.held:
            self._kept.append(piece)
            return
        if piece.name:
            self._dropped = self.full
            self.count += not self._dropped
        if self._dropped:
            return
        if self._out and not piece.name:
            index, last = self._out[-1]
            self._out[-1] = (index, CallPiece(last.name, last.arguments + piece.arguments))
        else:
            self._out.append((self.count - 1, piece))


def object_text(arguments: Any) -> str:
    """JSON of an object of arguments, given as such, as its text, or left out. Raises ``NoCall`` for anything else."""
    if arguments is None or arguments == "":
        return "{}"
    if isinstance(arguments, str):
        try:
            arguments = json.loads(mended(arguments))
        except (NotJson, ValueError, RecursionError) as error:
            raise NoCall from error
        return object_text({} if arguments is None else arguments)
    if not isinstance(arguments, dict):
        raise NoCall
    return json.dumps(arguments, ensure_ascii=False)


def _loose(name: str) -> str:
    return name.lower().replace("-", "_").replace(".", "_").replace(" ", "_")
