"""The output of OpenAI's responses: items, and the events that tell a streaming client how they grow."""

import uuid
from typing import Any

from plimsoll.actors.messages import Delta, Logprobs, ToolCallDelta
from plimsoll.engine.protocol import TokenLogprob
from plimsoll.http.openai.shapes import call_id, logprobs_body, text_waits
from plimsoll.http.whole import Whole

Event = dict[str, Any]


class Output:
    """The items of one response, one open at a time. What grows it gives the events that say so.

    In a ``scored`` one text waits for its log-probabilities.
    """

    def __init__(self, *, scored: bool = False) -> None:
        self._scored = scored
        self.items: list[dict[str, Any]] = []
        self.reasoning_tokens = 0
        self._open: _Item | None = None
        self._early: list[TokenLogprob] = []  # of tokens whose text is still to come

    def add(self, batch: list[Any]) -> list[Event]:
        """Take up the replies of a batch, ``Waiting`` and endings aside."""
        events: list[Event] = []
        for item in batch:
            if isinstance(item, Delta):
                if item.reasoning:
                    self.reasoning_tokens = item.tokens
                if item.text:
                    self._at(_Reasoning if item.reasoning else _Message, -1, events).pending += item.text
            elif isinstance(item, Logprobs):
                self._early += item.tokens
            elif isinstance(item, ToolCallDelta):
                call = self._at(_Call, item.index, events)
                if isinstance(call, _Call) and item.name:
                    call.name = item.name
                    events += call.opening()
                call.pending += item.arguments
        return events if text_waits(batch, scored=self._scored) else events + self._flush()

    def close(self, status: str, *, failed: bool = False) -> list[Event]:
        """Nothing more comes. A response without anything gets an empty message, unless it failed."""
        events: list[Event] = []
        if not (self.items or self._open or failed):
            self._at(_Message, -1, events)
        return events + self._close(status)

    def _at(self, kind: "type[_Item]", call: int, events: list[Event]) -> "_Item":
        if type(self._open) is not kind or self._open.call != call:
            events += self._close("completed")
            self._open = kind(len(self.items), call)
            if kind is not _Call:  # a call opens with its name
                events += self._open.opening()
        return self._open

    def _flush(self) -> list[Event]:
        if self._open is None:
            return []
        if isinstance(self._open, _Message):
            self._open.scored += logprobs_body(self._early)["content"]
            self._early = []
        return self._open.grow()

    def _close(self, status: str) -> list[Event]:
        if self._open is None:
            return []
        events = self._flush() + self._open.closing(status)
        self.items.append(self._open.body(status))
        self._open = None
        return events


class _Item:
    """An item that grows; ``call`` is the number of a tool call, -1 for others."""

    prefix = ""

    def __init__(self, index: int, call: int) -> None:
        self.call = call
        self.pending = ""
        self.text = ""
        self._id = f"{self.prefix}_{uuid.uuid4().hex}"
        self._at = {"item_id": self._id, "output_index": index}
        self._index = index

    def body(self, status: str) -> dict[str, Any]:
        raise NotImplementedError

    def opening(self) -> list[Event]:
        return [{"type": "response.output_item.added", "output_index": self._index, "item": self.body("in_progress")}]

    def grow(self) -> list[Event]:
        """What is pending, as an event; nothing when nothing is."""
        if not self.pending:
            return []
        delta, self.pending = self.pending, ""
        self.text += delta
        return [self.delta(delta)]

    def delta(self, text: str) -> Event:
        raise NotImplementedError

    def closing(self, status: str) -> list[Event]:
        return [{"type": "response.output_item.done", "output_index": self._index, "item": self.body(status)}]


class _Text(_Item):
    """An item with one part of text."""

    event = ""

    def part(self) -> dict[str, Any]:
        raise NotImplementedError

    def opening(self) -> list[Event]:
        return [*super().opening(), self._event("response.content_part.added", part=self.part())]

    def delta(self, text: str) -> Event:
        return self._event(f"{self.event}.delta", delta=text)

    def closing(self, status: str) -> list[Event]:
        done = self._event(f"{self.event}.done", text=self.text)
        return [done, self._event("response.content_part.done", part=self.part()), *super().closing(status)]

    def _event(self, kind: str, **more: Any) -> Event:
        return {"type": kind, **self._at, "content_index": 0, **more}


class _Reasoning(_Text):
    prefix, event = "rs", "response.reasoning_text"

    def part(self) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": self.text}

    def body(self, status: str) -> dict[str, Any]:
        content = [] if status == "in_progress" else [self.part()]
        return {"id": self._id, "type": "reasoning", "summary": [], "content": content, "status": status}


class _Message(_Text):
    prefix, event = "msg", "response.output_text"

    def __init__(self, index: int, call: int) -> None:
        super().__init__(index, call)
        self.scored: list[dict[str, Any]] = []  # tokens with their logprobs, not told of yet
        self._logprobs: list[dict[str, Any]] = []

    def part(self) -> dict[str, Any]:
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": self._logprobs}

    def body(self, status: str) -> dict[str, Any]:
        content = [] if status == "in_progress" else [self.part()]
        return {"id": self._id, "type": "message", "role": "assistant", "status": status, "content": content}

    def grow(self) -> list[Event]:
        return super().grow() or ([self.delta("")] if self.scored else [])

    def delta(self, text: str) -> Event:
        told, self.scored = self.scored, []
        self._logprobs += told
        return super().delta(text) | {"logprobs": told}

    def closing(self, status: str) -> list[Event]:
        done, *rest = super().closing(status)
        return [done | {"logprobs": self._logprobs}, *rest]


class _Call(_Item):
    prefix = "fc"

    def __init__(self, index: int, call: int) -> None:
        super().__init__(index, call)
        self.name = ""
        self._call_id = call_id()

    def body(self, status: str) -> dict[str, Any]:
        called = {"call_id": self._call_id, "name": self.name, "arguments": self.text}
        return {"id": self._id, "type": "function_call", "status": status, **called}

    def delta(self, text: str) -> Event:
        return {"type": "response.function_call_arguments.delta", **self._at, "delta": text}

    def closing(self, status: str) -> list[Event]:
        done = {"type": "response.function_call_arguments.done", **self._at, "name": self.name, "arguments": self.text}
        return [done, *super().closing(status)]


def whole_output(whole: Whole, status: str) -> list[dict[str, Any]]:
    """The items of a response that does not stream."""
    output = Output()
    said = [Delta(whole.reasoning, whole.reasoning_tokens, reasoning=True), Delta(whole.text, 0)]
    calls = [ToolCallDelta(index, call.name, call.arguments) for index, call in enumerate(whole.calls)]
    output.add([*said, Logprobs(whole.logprobs), *calls])
    output.close(status)
    return output.items
