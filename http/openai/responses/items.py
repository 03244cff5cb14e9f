"""The items of OpenAI's responses, and the events by which a streaming client follows them."""

import uuid
from collections.abc import Mapping
from typing import Any

import msgspec

from plimsoll.actors.replies import Delta, Logprobs, ToolCallDelta
from plimsoll.engine.protocol import TokenLogprob
from plimsoll.http.answer import WholeAnswer
from plimsoll.http.openai.answers import call_id, logprobs_body, text_waits
from plimsoll.http.openai.shell import SHELL, shell_action
from plimsoll.http.openai.tools import CUSTOM, Known, text_input

Event = dict[str, Any]


class How(msgspec.Struct, frozen=True):
    """How the client wants its items: ``known`` are its own words for tools, thoughts may be ``summarised``."""

    known: Mapping[str, Known] = {}
    summarised: bool = False


_PLAIN = How()


class Output:
    """The items of one response, one open at a time. Whatever changes them returns the events for the client.

    In a ``scored`` one text waits for its log-probabilities.
    """

    def __init__(self, how: How = _PLAIN, *, scored: bool = False) -> None:
        self._how = how
        self._thoughts: type[_Item] = _Summary if how.summarised else _Reasoning
        self._scored = scored
        self.items: list[dict[str, Any]] = []
        self.reasoning_tokens = 0
        self._open: _Item | None = None
        self._early: list[TokenLogprob] = []  # log-probabilities of tokens whose text is still to come

    def add(self, batch: list[Any]) -> list[Event]:
        """Add the items of a batch; ``Waiting`` and endings are ignored."""
        events: list[Event] = []
        for item in batch:
            if isinstance(item, Delta):
                if item.reasoning:
                    self.reasoning_tokens = item.tokens
                if item.text:
                    self._at(self._thoughts if item.reasoning else _Message, -1, events).pending += item.text
            elif isinstance(item, Logprobs):
                self._early += item.tokens
            elif isinstance(item, ToolCallDelta):
                self._call(item, events).pending += item.arguments
        return events if text_waits(batch, scored=self._scored) else events + self._flush()

    def close(self, status: str, *, failed: bool = False) -> list[Event]:
        """Close the output. A response without any item gets an empty message, unless it failed."""
        events: list[Event] = []
        if not (self.items or self._open or failed):
            self._at(_Message, -1, events)
        return events + self._close(status)

    def _call(self, item: ToolCallDelta, events: list[Event]) -> "_Item":
        """The call that ``item`` is a part of; a call is opened when its name comes."""
        known = self._how.known.get(item.name) or Known(item.name)
        going_on = isinstance(self._open, _Call) and self._open.call == item.index
        kind = type(self._open) if going_on and self._open else _kind_of(known)
        call = self._at(kind, item.index, events)
        if isinstance(call, _Call) and item.name:
            call.known = known
            events += call.opening()
        return call

    def _at(self, kind: "type[_Item]", call: int, events: list[Event]) -> "_Item":
        if type(self._open) is not kind or self._open.call != call:
            events += self._close("completed")
            self._open = kind(len(self.items), call)
            if not issubclass(kind, _Call):  # a call is opened when its name comes
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
        """The pending text as an event, if there is any."""
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
    """An item with one part of text; ``event`` and ``part_event`` begin the names of its events."""

    event = ""
    part_event = "response.content_part"
    index_key = "content_index"

    def part(self) -> dict[str, Any]:
        raise NotImplementedError

    def opening(self) -> list[Event]:
        return [*super().opening(), self._event(f"{self.part_event}.added", part=self.part())]

    def delta(self, text: str) -> Event:
        return self._event(f"{self.event}.delta", delta=text)

    def closing(self, status: str) -> list[Event]:
        done = self._event(f"{self.event}.done", text=self.text)
        return [done, self._event(f"{self.part_event}.done", part=self.part()), *super().closing(status)]

    def _event(self, kind: str, **more: Any) -> Event:
        return {"type": kind, **self._at, self.index_key: 0, **more}


class _Reasoning(_Text):
    prefix, event = "rs", "response.reasoning_text"

    def part(self) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": self.text}

    def body(self, status: str) -> dict[str, Any]:
        content = [] if status == "in_progress" else [self.part()]
        return {"id": self._id, "type": "reasoning", "summary": [], "content": content, "status": status}


class _Summary(_Text):
    """Thoughts, sent as the summary that OpenAI's own models give of theirs."""

    prefix, event, part_event = "rs", "response.reasoning_summary_text", "response.reasoning_summary_part"
    index_key = "summary_index"

    def part(self) -> dict[str, Any]:
        return {"type": "summary_text", "text": self.text}

    def body(self, status: str) -> dict[str, Any]:
        summary = [] if status == "in_progress" else [self.part()]
        return {"id": self._id, "type": "reasoning", "summary": summary, "content": [], "status": status}


class _Message(_Text):
    prefix, event = "msg", "response.output_text"

    def __init__(self, index: int, call: int) -> None:
        super().__init__(index, call)
        self.scored: list[dict[str, Any]] = []  # tokens with their log-probabilities that were not sent yet
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
        self.known = Known("")
        self._call_id = call_id()

    def body(self, status: str) -> dict[str, Any]:
        called = {"call_id": self._call_id, **self.named(), "arguments": self.text}
        return {"id": self._id, "type": "function_call", "status": status, **called}

    def named(self) -> dict[str, str]:
        """The tool's name, and its namespace where it has one."""
        space = {"namespace": self.known.namespace} if self.known.namespace else {}
        return {"name": self.known.name, **space}

    def delta(self, text: str) -> Event:
        return {"type": "response.function_call_arguments.delta", **self._at, "delta": text}

    def closing(self, status: str) -> list[Event]:
        told = {"name": self.known.name, "arguments": self.text}
        return [{"type": "response.function_call_arguments.done", **self._at, **told}, *super().closing(status)]


class _CustomCall(_Call):
    """A call with a free text, which is known when the arguments that hold it are whole."""

    prefix = "ctc"

    def body(self, status: str) -> dict[str, Any]:
        called = {"call_id": self._call_id, **self.named(), "input": self.text}
        return {"id": self._id, "type": "custom_tool_call", "status": status, **called}

    def grow(self) -> list[Event]:
        return []

    def closing(self, status: str) -> list[Event]:
        self.text, self.pending = text_input(self.pending or "{}"), ""
        delta = {"type": "response.custom_tool_call_input.delta", **self._at, "delta": self.text}
        done = {"type": "response.custom_tool_call_input.done", **self._at, "input": self.text}
        return [delta, done, *_Item.closing(self, status)]


class _ShellCall(_Call):
    """A call of the client's own shell: its command is known when the arguments are whole, and no event tells of it."""

    prefix = "lsh"

    def body(self, status: str) -> dict[str, Any]:
        action = shell_action(self.text)
        told = {"call_id": self._call_id, "action": action, "status": status}
        return {"id": self._id, "type": "local_shell_call", **told}

    def grow(self) -> list[Event]:
        return []

    def closing(self, status: str) -> list[Event]:
        self.text, self.pending = self.pending, ""
        return _Item.closing(self, status)


def _kind_of(known: Known) -> type[_Call]:
    return {CUSTOM: _CustomCall, SHELL: _ShellCall}.get(known.kind, _Call)


def whole_output(whole: WholeAnswer, status: str, how: How) -> list[dict[str, Any]]:
    """The items of a response that is not streamed."""
    output = Output(how)
    said = [Delta(whole.reasoning, whole.reasoning_tokens, reasoning=True), Delta(whole.text, 0)]
    calls = [ToolCallDelta(index, call.name, call.arguments) for index, call in enumerate(whole.calls)]
    output.add([*said, Logprobs(whole.logprobs), *calls])
    output.close(status)
    return output.items
