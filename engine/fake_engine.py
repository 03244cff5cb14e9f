"""A scriptable engine without MLX, for tests of everything around it and for measuring the front end.

Its switches stand in the model's source: ``fake:load_s=0.2,hold=64MiB,tokens_per_s=50,crash_at=5``. What it is asked
decides too: with tools, ``call NAME {"a": 1}`` as the last line calls NAME; what stands before a ``|`` in the answer
is reasoning; ``hang`` and ``raise MemoryError`` do that after one token.
"""

import os
import signal
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plimsoll.catalog.fake_source import Switches, parse
from plimsoll.catalog.source import Progress
from plimsoll.engine.engine import need_chat
from plimsoll.engine.protocol import (
    ChatRequest,
    Event,
    Lease,
    ModelInfo,
    PrefillProgress,
    Request,
    Step,
    TokenLogprob,
    ToolCallPart,
    Usage,
)
from plimsoll.errors import BadRequest, ContextTooLong

_LOAD_STEPS = 10


@dataclass(slots=True)
class _Request:
    """``thoughts`` of the ``words`` are reasoning; a ``call`` of (name, arguments) follows the last word."""

    prompt_tokens: int
    words: list[str]
    limit: int
    reason: str
    thoughts: int = 0
    call: tuple[str, str] | None = None
    logprobs: int | None = None
    scores: list[TokenLogprob] = field(default_factory=list)
    sent: int = 0
    cancelled: bool = False
    ready_at: float = 0.0
    fault: str = ""

    def word(self, index: int) -> str:
        return self.words[index % len(self.words)]

    def go_on_behind(self, tokens: Sequence[int]) -> None:
        """Raises ``ValueError`` for tokens that are not the beginning of this answer."""
        if list(tokens) != [_token(self.word(index)) for index in range(len(tokens))]:
            raise ValueError(f"the fake model's answer does not begin with the tokens {list(tokens)}")
        self.sent = len(tokens)

    def cut(self, room: int) -> None:
        if room < self.limit:
            self.limit, self.reason, self.call = room, "length", None


class FakeEngine:
    """An ``Engine`` that says what its switches tell it to."""

    def __init__(self, switches: str) -> None:
        self._switches = parse(switches)
        self._held: list[bytearray] = []
        self._open: dict[str, _Request] = {}
        self._tokens = 0

    def load(self, path: Path, progress: Progress) -> ModelInfo:  # noqa: ARG002 - there are no files
        switches = self._switches
        if switches.ignore_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for step in range(_LOAD_STEPS):
            time.sleep(switches.load_s / _LOAD_STEPS)
            self._held.append(_touched(switches.hold // _LOAD_STEPS))
            progress("read", switches.hold * (step + 1) // _LOAD_STEPS, switches.hold)
        if switches.fail_load:
            raise ValueError(switches.fail_load)
        if switches.load_memory_error:
            raise MemoryError("the fake model does not fit")
        if switches.crash_in_load:
            os.kill(os.getpid(), switches.crash_signal)
        return ModelInfo(switches.context, 1000, switches.hold, "cpu", "float32", "none", switches.load_s)

    def prepare(self, request: Request, so_far: Sequence[int] = ()) -> Any:
        request = need_chat(request)
        switches = self._switches
        contents = [str(message.get("content", "")) for message in request.messages]
        prompt = " ".join(map(str, request.prompt)) if isinstance(request.prompt, list) else request.prompt
        said = prompt if prompt is not None else contents[-1]
        if said == "raise BadRequest":
            raise BadRequest("the template refuses this", param="messages")
        prompt_tokens = len((prompt if prompt is not None else " ".join(contents)).split())
        if request.count_only:
            return _Request(prompt_tokens, [], 0, "stop")
        if prompt_tokens >= switches.context:
            raise ContextTooLong(f"the prompt has {prompt_tokens} tokens, the context {switches.context}")
        answer = _answer(request, switches, said, prompt_tokens)
        if said in _FAULTS:
            answer.fault, answer.limit = said, max(2, answer.limit)
        room = switches.context - prompt_tokens
        answer.cut(room if request.max_tokens is None else min(request.max_tokens, room))
        answer.go_on_behind(so_far)
        if request.score_prompt and not so_far:
            words = enumerate(said.split())
            answer.scores = [_scored(f" {word}" if at else word, request.logprobs or 0) for at, word in words]
        return answer

    def submit(self, request_id: str, prepared: _Request) -> None:
        prepared.ready_at = time.monotonic() + self._switches.prefill_s
        self._open[request_id] = prepared

    def cancel(self, request_id: str) -> None:
        if request := self._open.get(request_id):
            request.cancelled = True

    def busy(self) -> bool:
        return bool(self._open)

    def step(self) -> list[Event]:
        switches = self._switches
        if switches.tokens_per_s:
            time.sleep(1 / switches.tokens_per_s)
        now = time.monotonic()
        prefilling = [one for one, request in self._open.items() if request.ready_at > now and not request.cancelled]
        step = Step([])
        for request_id, request in list(self._open.items()):
            if request_id in prefilling:
                continue
            if request.fault and request.sent == 1:
                _FAULTS[request.fault]()
            if request.scores and not request.cancelled:
                step.prompts.append((request_id, request.scores))
                request.scores = []
            if not request.cancelled and request.sent < request.limit:
                self._one_token()
                _say(step, request_id, request)
            if request.cancelled or request.sent >= request.limit:
                del self._open[request_id]
                if request.call and not request.cancelled:
                    name, arguments = request.call
                    step.calls.extend((ToolCallPart(request_id, 0, name), ToolCallPart(request_id, 0, "", arguments)))
                reason = "cancelled" if request.cancelled else request.reason
                step.endings.append((request_id, reason, Usage(request.prompt_tokens, request.sent)))
        if prefilling and not step.texts:
            time.sleep(0.001)
        return [step, *(PrefillProgress(one, 0, self._open[one].prompt_tokens) for one in prefilling)]

    def idle(self) -> bool:
        return False

    def lease(self, lease: Lease) -> None:
        """Its room stays as it was at the load."""

    def give_way(self) -> list[Event]:
        self.trim()
        return []

    def trim(self) -> tuple[int, int]:
        return self._switches.hold, 0

    def close(self) -> None:
        time.sleep(self._switches.slow_close_s)
        self._held.clear()

    def _one_token(self) -> None:
        switches = self._switches
        self._tokens += 1
        if switches.grow:
            self._held.append(_touched(switches.grow))
        if self._tokens == switches.crash_at:
            os.kill(os.getpid(), switches.crash_signal)
        if self._tokens == switches.raise_at:
            _run_out()
        if self._tokens == switches.hang_at:
            _hang()


def _run_out() -> None:
    raise MemoryError("the fake model ran out of memory")


def _hang() -> None:
    time.sleep(3600)


_FAULTS = {"hang": _hang, "raise MemoryError": _run_out}


def _answer(request: ChatRequest, switches: Switches, said: str, prompt_tokens: int) -> _Request:
    """What to say to ``said``, without regard to the room there is."""
    # Agents put reminders of their own before what their user says.
    match next(reversed(said.strip().splitlines()), "").split(maxsplit=2):
        case ["call", name, *rest] if request.tool_choice != "none" and name in {tool.name for tool in request.tools}:
            arguments = rest[0] if rest else "{}"
            # At least one token, as a real model would need.
            return _Request(prompt_tokens, [""], 1, "tool_calls", call=(name, arguments), logprobs=request.logprobs)
    text = switches.answer or said
    thoughts, bar, answer = text.partition("|")
    thought = thoughts.split() if bar and request.thinking is not False else []
    words = [*thought, *(answer if bar else text).split()] or ["."]
    length = switches.length if switches.answer else len(words)
    return _Request(prompt_tokens, words, length, "stop", thoughts=len(thought), logprobs=request.logprobs)


def _say(step: Step, request_id: str, request: _Request) -> None:
    """One token: a word, which gets a space unless it is the first of the reasoning or of the answer."""
    word = request.word(request.sent)
    text = word if request.sent in (0, request.thoughts) else f" {word}"
    thinking = request.sent < request.thoughts
    request.sent += 1
    step.tokens.append((request_id, _token(word)))
    (step.reasoning if thinking else step.texts).append((request_id, text, request.sent))
    if request.logprobs is not None:
        step.logprobs.append((request_id, [_scored(text, request.logprobs)]))


def _scored(text: str, top: int) -> TokenLogprob:
    others = [(text, -0.5), *((f"other{other}", -2.0 - other) for other in range(top))]
    return TokenLogprob(text, -0.5, others[:top])


def _token(word: str) -> int:
    return zlib.crc32(word.encode()) % 50_000


def _touched(size: int) -> bytearray:
    """``size`` bytes that are really resident: every page is written."""
    block = bytearray(size)
    block[::4096] = b"x" * len(range(0, size, 4096))
    return block
