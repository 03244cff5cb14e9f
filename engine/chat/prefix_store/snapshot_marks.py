"""Where in a prompt a snapshot will serve other prompts, found by rendering other conversations."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from plimsoll.engine.chat.prefix_store.tree import common_prefix
from plimsoll.engine.protocol import ChatRequest
from plimsoll.errors import BadRequest

_SYSTEM_ROLES = ("system", "developer")
# System parts whose renderings are remembered.
_REMEMBERED = 16
# A template that changes more than this of the last turn later on is no template whose turns go on.
_MOST_REWRITTEN = 64
# A system part shorter than this is read faster than a snapshot is copied.
_LEAST_SYSTEM_TOKENS = 32
_EVERY = 2048
_MOST_PERIODIC = 8


@dataclass(frozen=True, slots=True)
class _Shape:
    """The tokens of the system part, and how many tokens at a prompt's end the next turn's prompt has not."""

    system: tuple[int, ...]
    rewritten: int


class Marks:
    """Positions for the prompts of one template; used by one thread.

    The system part ends where two conversations that have it in common part. A turn's prompt ends, for the next turn,
    where the template begins to tell the answer instead of asking for it: often a few tokens before the prompt's end,
    as ``<think>`` is not repeated later.
    """

    def __init__(self, render: Callable[[ChatRequest], list[int]]) -> None:
        """``render`` applies the template and tokenises; it raises ``BadRequest`` for what the template refuses."""
        self._render = render
        self._shapes: OrderedDict[bytes, _Shape] = OrderedDict()

    def of(self, request: ChatRequest, tokens: list[int]) -> tuple[int, ...]:
        """The positions, ascending; at least the last token of the prompt is behind each of them."""
        last = len(tokens) - 1
        shape = _Shape((), 0) if request.prompt is not None else self._shape(request)
        system = len(shape.system)
        found = {last - shape.rewritten + 1 if shape.rewritten else last}
        if system >= _LEAST_SYSTEM_TOKENS and tuple(tokens[:system]) == shape.system:
            found.add(system)
        return tuple(sorted(mark for mark in found | periodic(last) if 0 < mark <= last))

    def _shape(self, request: ChatRequest) -> _Shape:
        leading = []
        for message in request.messages:
            if message.get("role") not in _SYSTEM_ROLES:
                break
            leading.append(message)
        alike = msgspec.structs.replace(request, messages=leading, max_tokens=None, stop=(), logprobs=None)
        key = hashlib.sha256(msgspec.msgpack.encode(alike)).digest()
        shape = self._shapes.pop(key, None)
        if shape is None:
            shape = self._look(alike)
        self._shapes[key] = shape
        while len(self._shapes) > _REMEMBERED:
            self._shapes.popitem(last=False)
        return shape

    def _look(self, request: ChatRequest) -> _Shape:
        def render(*texts: str) -> list[int]:
            turns = [
                {"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, texts, strict=False)
            ]
            return self._render(msgspec.structs.replace(request, messages=[*request.messages, *turns]))

        try:
            one, other = render("a"), render("b")
        except BadRequest:
            return _Shape((), 0)
        system = tuple(one[: common_prefix(one, other)])
        try:
            rewritten = len(one) - common_prefix(one, render("a", "b", "a"))
        except BadRequest:
            rewritten = 0
        return _Shape(system, rewritten if rewritten <= _MOST_REWRITTEN else 0)


def periodic(last: int) -> set[int]:
    """Positions at equal distances, so that long prompts which part somewhere share most of what they have in common.

    At most ``_MOST_PERIODIC`` of them: each may be as large as thousands of tokens.
    """
    every = _EVERY
    while last // every > _MOST_PERIODIC:
        every *= 2
    return set(range(every, last + 1, every))
