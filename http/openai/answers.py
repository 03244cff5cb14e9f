"""OpenAI's answers on the wire: what they have in common, and chat completions."""

import uuid
from typing import Any

import msgspec

from plimsoll import __version__
from plimsoll.actors.replies import Delta, Finished, Logprobs, ToolCallDelta
from plimsoll.engine.protocol import TokenLogprob, Usage
from plimsoll.http.answer import Call, WholeAnswer
from plimsoll.http.endpoint import AnswerEncoder
from plimsoll.http.openai.tools import text_input

_encode = msgspec.json.encode
FINGERPRINT = f"plimsoll-{__version__}"
DONE = b"data: [DONE]\n\n"


class Head(msgspec.Struct):
    """What every chunk of an answer begins with; ``count`` answers stand side by side, ``per_prompt`` to each prompt.

    ``scored`` answers have log-probabilities, which come after their text. Calls of ``custom`` tools have a free text.
    """

    id: str
    model: str
    created: int
    count: int = 1
    per_prompt: int = 1
    include_usage: bool = False
    scored: bool = False
    custom: frozenset[str] = frozenset()

    def body(self, kind: str) -> dict[str, Any]:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return head | {"system_fingerprint": FINGERPRINT}


def text_waits(batch: list[Any], *, scored: bool) -> bool:
    """Whether a batch ends with text whose log-probabilities are still to come, so that the text has to wait."""
    return scored and bool(batch) and isinstance(batch[-1], Delta)


class Usages:
    """The sum of the tokens of several answers: each prompt counts once, each completion counts."""

    def __init__(self, head: Head) -> None:
        self._left = head.count
        self._per_prompt = head.per_prompt
        self._prompt = self._completion = self._cached = self._reasoning = 0

    @property
    def complete(self) -> bool:
        return self._left == 0

    def add(self, index: int, usage: Usage, reasoning_tokens: int) -> None:
        self._left -= 1
        self._completion += usage.completion_tokens
        self._reasoning += reasoning_tokens
        if index % self._per_prompt == 0:
            self._prompt += usage.prompt_tokens
            self._cached += usage.cached_tokens

    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "prompt_tokens": self._prompt,
            "completion_tokens": self._completion,
            "total_tokens": self._prompt + self._completion,
            "prompt_tokens_details": {"cached_tokens": self._cached},
        }
        if self._reasoning:
            body["completion_tokens_details"] = {"reasoning_tokens": self._reasoning}
        return body


def usage_body(head: Head, wholes: list[WholeAnswer]) -> dict[str, Any]:
    usages = Usages(head)
    for index, whole in enumerate(wholes):
        usages.add(index, whole.usage, whole.reasoning_tokens)
    return usages.body()


def logprobs_body(tokens: list[TokenLogprob]) -> dict[str, Any]:
    content = [
        token_body(token.text, token.logprob, token.encoded)
        | {"top_logprobs": [token_body(*other) for other in token.alternatives]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def token_body(text: str, logprob: float, encoded: bytes) -> dict[str, Any]:
    return {"token": text, "logprob": likelihood(logprob), "bytes": list(encoded)}


def likelihood(logprob: float) -> float:
    """``logprob``, at least -9999.0: OpenAI's figure in place of minus infinity, which JSON does not have."""
    return max(logprob, -9999.0)


def call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


class ChatEncoder(AnswerEncoder):
    """Chat completions. What is constant in a stream is encoded once; of each text only the text itself is encoded."""

    def __init__(self, head: Head) -> None:
        self._values = head
        # Without the last brace: what varies is appended.
        self._head = b"data: " + _encode(head.body("chat.completion.chunk"))[:-1]
        self._tail = (b',"usage":null' if head.include_usage else b"") + b"}\n\n"
        self._choices = [
            _Choice(self._head, index, self._tail, scored=head.scored, custom=head.custom)
            for index in range(head.count)
        ]
        self._usages = Usages(head)
        self._include_usage = head.include_usage

    def events(self, index: int, batch: list[Any]) -> bytes:
        out = self._choices[index].events(batch)
        if batch and isinstance(batch[-1], Finished):
            self._usages.add(index, batch[-1].usage, self._choices[index].reasoning_tokens)
            if self._usages.complete:
                out += self._ending()
        return out

    def whole(self, answers: list[WholeAnswer]) -> dict[str, Any]:
        choices = [_choice(index, answer, self._values.custom) for index, answer in enumerate(answers)]
        usage = usage_body(self._values, answers)
        return self._values.body("chat.completion") | {"choices": choices, "usage": usage}

    def _ending(self) -> bytes:
        if not self._include_usage:
            return DONE
        return self._head + b',"choices":[],"usage":' + _encode(self._usages.body()) + b"}\n\n" + DONE


class _Choice:
    """One of the answers. Items of one kind that follow each other in a batch become one chunk."""

    def __init__(self, head: bytes, index: int, tail: bytes, *, scored: bool, custom: frozenset[str]) -> None:
        self._before = head + b',"choices":[{"index":' + str(index).encode() + b',"delta":'
        self._before_text = self._before + b'{"content":'
        self._after = b',"logprobs":null,"finish_reason":null}]' + tail
        self._after_text = b"}" + self._after
        self._tail = tail
        self._scored = scored
        self._begun = False
        self._text = self._reasoning = ""
        self._logprobs: list[TokenLogprob] = []
        self._calls: dict[int, _Call] = {}
        self._custom = custom
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
                out += self._said() + self._whole_customs() + self._finish(item.reason)
        if not text_waits(batch, scored=self._scored):
            out += self._said()
        if out and not self._begun:
            self._begun = True
            return self._before + b'{"role":"assistant","content":""}' + self._after + out
        return out

    def _said(self) -> bytes:
        out = b""
        if self._reasoning:  # reasoning comes before the answer proper
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
        out = b""
        if part.index not in self._calls:
            out = self._whole_customs()
            self._calls[part.index] = _Call(call_id(), part.name, custom=part.name in self._custom)
        call = self._calls[part.index]
        if call.custom:  # its text is known when the arguments that hold it are whole
            call.arguments += part.arguments
            return out
        return out + self._told_call(call.part(part.index, part.arguments))

    def _whole_customs(self) -> bytes:
        """The calls of custom tools that have come in full and are not told yet."""
        whole = [(index, call) for index, call in self._calls.items() if call.custom and not call.told]
        return b"".join(self._told_call(call.part(index, text_input(call.arguments))) for index, call in whole)

    def _told_call(self, body: dict[str, Any]) -> bytes:
        return self._before + _encode({"tool_calls": [body]}) + self._after

    def _finish(self, reason: str) -> bytes:
        return self._before + b'{},"logprobs":null,"finish_reason":' + _encode(reason) + b"}]" + self._tail


class _Call:
    """One tool call of a choice; its id and name are told with its first part."""

    def __init__(self, own_id: str, name: str, *, custom: bool) -> None:
        self.custom = custom
        self.arguments = ""
        self.told = False
        self._id = own_id
        self._name = name

    def part(self, index: int, text: str) -> dict[str, Any]:
        """The delta with this text of the call's arguments, or of its free input."""
        kind, key = ("custom", "input") if self.custom else ("function", "arguments")
        if self.told:
            return {"index": index, kind: {key: text}}
        self.told = True
        return {"index": index, "id": self._id, "type": kind, kind: {"name": self._name, key: text}}


def _choice(index: int, whole: WholeAnswer, custom: frozenset[str]) -> dict[str, Any]:
    calls = [_whole_call(call, custom=call.name in custom) for call in whole.calls]
    message: dict[str, Any] = {"role": "assistant", "content": whole.text, "refusal": None}
    if whole.reasoning:
        message["reasoning_content"] = whole.reasoning
    if calls:
        message |= {"content": whole.text or None, "tool_calls": calls}
    logprobs = logprobs_body(whole.logprobs) if whole.logprobs else None
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": whole.reason}


def _whole_call(call: Call, *, custom: bool) -> dict[str, Any]:
    if custom:
        return {"id": call_id(), "type": "custom", "custom": {"name": call.name, "input": text_input(call.arguments)}}
    return {"id": call_id(), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
