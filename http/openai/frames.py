"""Chat completions on the wire. What is constant in a stream is serialised once; per text only itself is encoded."""

from typing import Any

import msgspec

from plimsoll.actors.messages import Delta, Finished, Logprobs, ToolCallDelta, Waiting
from plimsoll.engine.protocol import TokenLogprob
from plimsoll.errors import PlimsollError
from plimsoll.http.errors import envelope
from plimsoll.http.openai.shapes import DONE, Head, Usages, call_id, logprobs_body, text_waits, usage_body
from plimsoll.http.sse import comment
from plimsoll.http.whole import Whole

_encode = msgspec.json.encode


class Chunks:
    """The server-sent events of a streamed chat completion."""

    def __init__(self, head: Head) -> None:
        # Without the last brace: what varies is appended.
        self._head = b"data: " + _encode(head.body("chat.completion.chunk"))[:-1]
        self._tail = (b',"usage":null' if head.include_usage else b"") + b"}\n\n"
        self._choices = [_Choice(self._head, index, self._tail, scored=head.scored) for index in range(head.count)]
        self._usages = Usages(head)
        self._include_usage = head.include_usage

    def events(self, index: int, batch: list[Any]) -> bytes:
        out = self._choices[index].events(batch)
        if batch and isinstance(batch[-1], Finished):
            self._usages.add(index, batch[-1].usage, self._choices[index].reasoning_tokens)
            if self._usages.complete:
                out += self._ending()
        return out

    def silence(self, waiting: Waiting | None) -> bytes:
        return comment(waiting)

    def failure(self, error: PlimsollError) -> bytes:
        """Clients raise on it."""
        return b"data: " + _encode(envelope(error)) + b"\n\n"

    def _ending(self) -> bytes:
        if not self._include_usage:
            return DONE
        return self._head + b',"choices":[],"usage":' + _encode(self._usages.body()) + b"}\n\n" + DONE


class _Choice:
    """One of the answers. Neighbours of one kind in a batch become one chunk."""

    def __init__(self, head: bytes, index: int, tail: bytes, *, scored: bool) -> None:
        self._before = head + b',"choices":[{"index":' + str(index).encode() + b',"delta":'
        self._before_text = self._before + b'{"content":'
        self._after = b',"logprobs":null,"finish_reason":null}]' + tail
        self._after_text = b"}" + self._after
        self._tail = tail
        self._scored = scored
        self._begun = False
        self._text = self._reasoning = ""
        self._logprobs: list[TokenLogprob] = []
        self._call_ids: dict[int, str] = {}
        self.reasoning_tokens = 0

    def events(self, batch: list[Any]) -> bytes:
        out = b""
        for item in batch:
            if isinstance(item, Delta):
                if item.reasoning:
                    self.reasoning_tokens = item.tokens
                    self._reasoning += item.text
                else:
                    self._text += item.text
            elif isinstance(item, Logprobs):
                self._logprobs += item.tokens
            elif isinstance(item, ToolCallDelta):
                out += self._said() + self._call(item)
            elif isinstance(item, Finished):
                out += self._said() + self._finish(item.reason)
        if not text_waits(batch, scored=self._scored):
            out += self._said()
        if out and not self._begun:
            self._begun = True
            return self._before + b'{"role":"assistant","content":""}' + self._after + out
        return out

    def _said(self) -> bytes:
        out = b""
        if self._reasoning:  # it comes before the answer proper
            out = self._before + b'{"reasoning_content":' + _encode(self._reasoning) + b"}" + self._after
        if self._logprobs:
            told = _encode(logprobs_body(self._logprobs))
            out += self._before_text + _encode(self._text) + b'},"logprobs":' + told
            out += b',"finish_reason":null}]' + self._tail
            self._logprobs = []
        elif self._text:
            out += self._before_text + _encode(self._text) + self._after_text
        self._text = self._reasoning = ""
        return out

    def _call(self, part: ToolCallDelta) -> bytes:
        body: dict[str, Any] = {"index": part.index}
        if part.index in self._call_ids:
            body["function"] = {"arguments": part.arguments}
        else:
            self._call_ids[part.index] = body["id"] = call_id()
            body |= {"type": "function", "function": {"name": part.name, "arguments": part.arguments}}
        return self._before + _encode({"tool_calls": [body]}) + self._after

    def _finish(self, reason: str) -> bytes:
        return self._before + b'{},"logprobs":null,"finish_reason":' + _encode(reason) + b"}]" + self._tail


def completion(head: Head, wholes: list[Whole]) -> dict[str, Any]:
    """The whole of a chat completion that does not stream."""
    choices = [_choice(index, whole) for index, whole in enumerate(wholes)]
    return head.body("chat.completion") | {"choices": choices, "usage": usage_body(head, wholes)}


def _choice(index: int, whole: Whole) -> dict[str, Any]:
    calls = [
        {"id": call_id(), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in whole.calls
    ]
    message: dict[str, Any] = {"role": "assistant", "content": whole.text, "refusal": None}
    if whole.reasoning:
        message["reasoning_content"] = whole.reasoning
    if calls:
        message |= {"content": whole.text or None, "tool_calls": calls}
    logprobs = logprobs_body(whole.logprobs) if whole.logprobs else None
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": whole.reason}
