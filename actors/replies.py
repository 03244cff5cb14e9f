"""The items of an answer, and its one ending, as they go back to the front end."""

from typing import Any, Protocol

import msgspec

from plimsoll.engine.protocol import TokenLogprob, Usage
from plimsoll.errors import PlimsollError


class Waiting(msgspec.Struct, frozen=True):
    """No token for now. ``stage`` is queue, fetch, convert, read, prefill, memory or resume; ``total`` 0: not known.

    ``memory``: the answer waits, or is paused, until ``total`` bytes are free for it; ``done`` are. ``resume``: the
    request has lost its worker, and the next one goes on with it.
    """

    stage: str
    done: int = 0
    total: int = 0


class Delta(msgspec.Struct, frozen=True):
    """More text; ``tokens`` is the count generated so far; ``reasoning`` for what comes before the answer proper."""

    text: str
    tokens: int
    reasoning: bool = False


class Logprobs(msgspec.Struct, frozen=True):
    """The chosen tokens since the last one of these, where they were asked for."""

    tokens: list[TokenLogprob]


class PromptLogprobs(msgspec.Struct, frozen=True):
    """The prompt's tokens, where they were to be scored: once, before the first part of the answer.

    The first token's log-probability says nothing.
    """

    tokens: list[TokenLogprob]


class ToolCallDelta(msgspec.Struct, frozen=True):
    """Part of tool call number ``index``; ``name`` comes with its first part, ``arguments`` are pieces of JSON."""

    index: int
    name: str = ""
    arguments: str = ""


class Vectors(msgspec.Struct, frozen=True):
    """The answer to an ``EmbedRequest``, before its ``Finished``: float32 rows, little-endian.

    To a ``RerankRequest`` a row has one number, the document's score as a logit.
    """

    data: bytes
    dimensions: int


class Tokens(msgspec.Struct, frozen=True):
    """The ids of the tokens whose text and the like has just come, for whoever may have to carry the answer on."""

    ids: list[int]


class Finished(msgspec.Struct, frozen=True):
    """An ending: ``reason`` is stop, length, tool_calls or cancelled; ``stop`` the client's stop string that it was."""

    reason: str
    usage: Usage
    stop: str | None = None


class Failed(msgspec.Struct, frozen=True):
    """An ending: the error says what happened and what to do.

    One error may end many requests, and each receiver may raise it, so each gets an object of its own.
    """

    reason: PlimsollError

    def __post_init__(self) -> None:
        # An error that was raised before holds stack frames, and with them a request's data.
        msgspec.structs.force_setattr(self, "reason", self.reason.fresh())

    @property
    def error(self) -> PlimsollError:
        """The error, a new object at each access."""
        return self.reason.fresh()


class Reply(Protocol):
    """Receives the items of an answer; ``inbox.py`` has the implementation for asyncio.

    A request's reply gets any number of ``Waiting`` and ``Delta`` and exactly one ``Finished`` or ``Failed``.
    """

    def send(self, item: Any) -> None:
        """Hand over one item from any thread; never blocks, never raises."""
