"""One model's requests, waiting and running; each gets exactly one ending."""

import math
import random
from collections.abc import Callable, Iterable

import msgspec

from plimsoll.actors import status
from plimsoll.actors.expected_wait import Pace, expected_wait_s
from plimsoll.actors.messages import Chat
from plimsoll.actors.replies import (
    Delta,
    Failed,
    Finished,
    Logprobs,
    PromptLogprobs,
    Tokens,
    ToolCallDelta,
    Vectors,
    Waiting,
)
from plimsoll.actors.resume import Loss, Resume, after_loss
from plimsoll.actors.waiting_requests import WaitingRequests, is_suspect
from plimsoll.engine.protocol import ChatRequest, Embedded, Held, PrefillProgress, Request, RequestError, Step, Usage
from plimsoll.errors import (
    BadRequest,
    ContextTooLong,
    InsufficientMemory,
    InternalError,
    NeverFits,
    PlimsollError,
    QueueFull,
)

_ERRORS: dict[str, type[PlimsollError]] = {
    "invalid_value": BadRequest,
    "context_length_exceeded": ContextTooLong,
    "insufficient_memory": InsufficientMemory,
    "never_fits": NeverFits,
    "queue_full": QueueFull,
}


def with_seed(request: Request) -> Request:
    """The request with a seed of its own if it has none, so that any worker goes on with the same answer."""
    if not isinstance(request, ChatRequest) or request.sampling.seed is not None:
        return request
    sampling = msgspec.structs.replace(request.sampling, seed=random.getrandbits(63))
    return msgspec.structs.replace(request, sampling=sampling)


class _Running:
    """``new_tokens`` are those that its present worker has generated, of ``tokens`` in all."""

    __slots__ = ("before", "cancelled", "chat", "new_tokens", "tokens")

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.new_tokens: list[int] = []
        self.before = self.tokens = len(chat.resume.tokens) if chat.resume else 0
        self.cancelled = False

    @property
    def is_suspect(self) -> bool:
        """Whether its last worker died before it gave it a token, and this one has not given it any either."""
        return not self.new_tokens and is_suspect(self.chat)


class Requests:
    """Owned by one ModelActor. ``limit`` bounds waiting and running requests together."""

    def __init__(self, limit: int, pace: Pace, now: Callable[[], float]) -> None:
        self.limit = limit
        self.pace = pace
        self._now = now
        self.line = WaitingRequests()
        self._running: dict[str, _Running] = {}
        self._ended_tokens = 0
        self.has_progress = False
        """Whether the present worker has given any request a token."""

    @property
    def waiting(self) -> int:
        return len(self.line)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def tokens(self) -> int:
        """Completion tokens of all requests so far, the running ones included."""
        return self._ended_tokens + sum(one.tokens - one.before for one in self._running.values())

    def usage(self, last_used: float, still_since: float | None, patience_s: float) -> status.Usage:
        """The figures that the Supervisor decides by."""
        if not self.line:
            return status.Usage(len(self._running), 0, last_used, still_since)
        paused = self.line.paused()
        return status.Usage(
            len(self._running),
            len(self.line),
            last_used,
            still_since,
            paused=len(paused),
            paused_since=min((one.since for one in paused), default=math.inf),
            paused_until=max((one.until for one in paused), default=0.0),
            waits_until=self.line.last_end(patience_s),
        )

    def has_room(self) -> bool:
        """Whether one more request may be taken."""
        return len(self.line) + len(self._running) < self.limit

    def full(self, name: str, *, loaded: bool) -> QueueFull:
        """The error for a request for which there is no room, with the time after which there is some."""
        count = len(self.line) + len(self._running)
        text = f"{name} has {count} requests already; try again shortly or raise models.queue"
        return QueueFull(text, retry_after_s=expected_wait_s(self.pace, count, loaded=loaded))

    def start(self) -> Iterable[Chat]:
        """What waits becomes running, in order.

        Of requests whose last worker died before it gave them a token one at a time is tried: it may be the reason.
        """
        for chat in self.line.take():
            if is_suspect(chat) and any(one.is_suspect for one in self._running.values()):
                self.line.add(chat)
                continue
            started = msgspec.structs.replace(chat, request=with_seed(chat.request), since=None)
            self._running[chat.id] = _Running(started)
            self.pace.busy(self._now())
            yield started

    def deliver(self, step: Step) -> bool:
        """Text, calls and endings of one decode step; ids that have already ended are ignored.

        Returns whether requests wait that ``start`` may start now.
        """
        held = self.line and any(one.is_suspect for one in self._running.values())
        told = self._keep_tokens(step)
        for request_id, scored in step.prompts:
            self._pass_on(request_id, PromptLogprobs(scored))
        for request_id, text, tokens in step.reasoning:
            self._text(request_id, text, tokens, reasoning=True)
        for request_id, text, tokens in step.texts:
            self._text(request_id, text, tokens, reasoning=False)
        for request_id, chosen in step.logprobs:
            self._pass_on(request_id, Logprobs(chosen))
        for call in step.calls:
            self._pass_on(call.request_id, ToolCallDelta(call.index, call.name, call.arguments))
        for request_id, new in told.items():
            self._pass_on(request_id, Tokens(new))
        stops = dict(step.stops)
        for request_id, reason, usage in step.endings:
            if running := self._end(request_id, answered=True):
                running.chat.reply.send(Finished(reason, usage, stops.get(request_id)))
        return bool(held) and not any(one.is_suspect for one in self._running.values())

    def _keep_tokens(self, step: Step) -> dict[str, list[int]]:
        """Note the new tokens. Returns those of requests whose replies are told them."""
        told: dict[str, list[int]] = {}
        for request_id, token in step.tokens:
            if running := self._running.get(request_id):
                running.new_tokens.append(token)
                self.has_progress = True
                if running.chat.tells_tokens:
                    told.setdefault(request_id, []).append(token)
        return told

    def _text(self, request_id: str, text: str, tokens: int, *, reasoning: bool) -> None:
        if running := self._running.get(request_id):
            running.tokens = tokens
            if text:
                running.chat.reply.send(Delta(text, tokens, reasoning))

    def _pass_on(self, request_id: str, item: Logprobs | PromptLogprobs | ToolCallDelta | Waiting | Tokens) -> None:
        if running := self._running.get(request_id):
            running.chat.reply.send(item)

    def embedded(self, event: Embedded) -> None:
        """The vectors of one request, and its ending."""
        if running := self._end(event.id, answered=True):
            self.has_progress = True
            running.chat.reply.send(Vectors(event.vectors, event.dimensions))
            running.chat.reply.send(Finished("stop", event.usage))

    def cancel(self, request_id: str) -> bool:
        """End a waiting request; True when it runs instead, so that the worker has to be told."""
        if running := self._running.get(request_id):
            running.cancelled = True
            return True
        self.line.cancel(request_id)
        return False

    def on_prefill(self, event: PrefillProgress) -> None:
        """Tell one running request how much of its prompt was read."""
        self._pass_on(event.id, Waiting("prefill", event.done, event.total))

    def on_held(self, event: Held) -> None:
        """Tell one running request that it waits for memory."""
        self._pass_on(event.id, Waiting("memory", event.room_bytes, event.needed_bytes))

    def refused(self, event: RequestError) -> None:
        """End one running request with the worker's reason."""
        self._fail(event.id, _ERRORS.get(event.code, InternalError)(event.message, param=event.param))

    def fail_running(self, error: PlimsollError) -> None:
        """End every running request with ``error``."""
        while self._running:
            self._fail(next(reversed(self._running)), error)

    def fail_all(self, error: PlimsollError) -> None:
        """End every request with ``error``."""
        self.fail_running(error)
        self.line.fail(error)

    def _fail(self, request_id: str, error: PlimsollError) -> None:
        if running := self._end(request_id):
            running.chat.reply.send(Failed(error))

    def _end(self, request_id: str, *, answered: bool = False) -> _Running | None:
        if running := self._running.pop(request_id, None):
            self._ended_tokens += running.tokens - running.before
            if answered:
                self.pace.answered(self._now())
            if not self._running:
                self.pace.idle()
        return running

    # ---- requests without a worker

    def lose_worker(self, loss: Loss) -> int:
        """The running requests wait for the next worker, before all others; returns their number.

        What can't be carried on ends with the loss's error, and a cancelled request as cancelled.
        """
        self.has_progress = False
        if loss.died and self._running:
            self.line.wait_anew(loss)
        paused: list[Chat] = []
        for one in list(self._running.values()):
            chat = one.chat
            self._end(chat.id)
            if one.cancelled:
                chat.reply.send(Finished("cancelled", Usage()))
            elif resume := after_loss(chat.resume, one.new_tokens, loss):
                paused.append(msgspec.structs.replace(chat, resume=resume))
            else:
                chat.reply.send(Failed(loss.error))
        # Those that wait for their turn to be tried again have waited longer.
        for chat in paused:
            self.line.add(chat)
            chat.reply.send(Waiting("resume"))
        return len(paused)

    def resumed(self) -> list[Resume]:
        """What paused requests that run now took along from their last worker."""
        return [one.chat.resume for one in self._running.values() if one.chat.resume and one.chat.is_paused]
