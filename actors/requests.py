"""The requests of one model: those that wait for it and those its worker runs; each gets exactly one ending."""

from collections import deque
from collections.abc import Iterable

from plimsoll.actors.messages import Chat, Delta, Failed, Finished, Logprobs, ToolCallDelta, Vectors, Waiting
from plimsoll.engine.protocol import Embedded, PrefillProgress, RequestError, Step, Usage
from plimsoll.errors import (
    BadRequest,
    ContextTooLong,
    InsufficientMemory,
    InternalError,
    NeverFits,
    PlimsollError,
)

_ERRORS: dict[str, type[PlimsollError]] = {
    "invalid_value": BadRequest,
    "context_length_exceeded": ContextTooLong,
    "insufficient_memory": InsufficientMemory,
    "never_fits": NeverFits,
}


class _Running:
    __slots__ = ("chat", "tokens")

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.tokens = 0


class Requests:
    """Bookkeeping without I/O but for the replies; owned by one ModelActor."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._waiting: deque[Chat] = deque()
        self._running: dict[str, _Running] = {}
        self._ended_tokens = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def tokens(self) -> int:
        """Completion tokens of all requests so far, the running ones included."""
        return self._ended_tokens + sum(one.tokens for one in self._running.values())

    def has_room(self) -> bool:
        """Whether one more request may be taken."""
        return len(self._waiting) + len(self._running) < self.limit

    def add(self, chat: Chat) -> None:
        """``chat`` waits its turn."""
        self._waiting.append(chat)

    def start(self) -> Iterable[Chat]:
        """Everything that waits becomes running, in order."""
        while self._waiting:
            chat = self._waiting.popleft()
            self._running[chat.id] = _Running(chat)
            yield chat

    def take_waiting(self) -> list[Chat]:
        """Those that wait, in order; they are somebody else's from now on."""
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting

    def deliver(self, step: Step) -> None:
        """Text, calls and endings of one decode step; ids that have already ended are ignored."""
        for request_id, text, tokens in step.reasoning:
            self._text(request_id, text, tokens, reasoning=True)
        for request_id, text, tokens in step.texts:
            self._text(request_id, text, tokens, reasoning=False)
        for request_id, chosen in step.logprobs:
            self._pass_on(request_id, Logprobs(chosen))
        for call in step.calls:
            self._pass_on(call.request_id, ToolCallDelta(call.index, call.name, call.arguments))
        stops = dict(step.stops)
        for request_id, reason, usage in step.endings:
            if running := self._end(request_id):
                running.chat.reply.send(Finished(reason, usage, stops.get(request_id)))

    def _text(self, request_id: str, text: str, tokens: int, *, reasoning: bool) -> None:
        if running := self._running.get(request_id):
            running.tokens = tokens
            if text:
                running.chat.reply.send(Delta(text, tokens, reasoning))

    def _pass_on(self, request_id: str, item: Logprobs | ToolCallDelta | Waiting) -> None:
        if running := self._running.get(request_id):
            running.chat.reply.send(item)

    def embedded(self, event: Embedded) -> None:
        """The vectors of one request, and its ending."""
        if running := self._running.pop(event.id, None):
            running.chat.reply.send(Vectors(event.vectors, event.dimensions))
            running.chat.reply.send(Finished("stop", event.usage))

    def cancel(self, request_id: str) -> bool:
        """End a waiting request; True when it runs instead, so that the worker has to be told."""
        if request_id in self._running:
            return True
        for chat in self._waiting:
            if chat.id == request_id:
                self._waiting.remove(chat)
                chat.reply.send(Finished("cancelled", Usage()))
                break
        return False

    def progress(self, item: Waiting) -> None:
        """Tell all waiting requests how far things are."""
        for chat in self._waiting:
            chat.reply.send(item)

    def on_prefill(self, event: PrefillProgress) -> None:
        """Tell one running request how much of its prompt was read."""
        self._pass_on(event.id, Waiting("prefill", event.done, event.total))

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
        while self._waiting:
            self._waiting.popleft().reply.send(Failed(error))

    def _fail(self, request_id: str, error: PlimsollError) -> None:
        if running := self._end(request_id):
            running.chat.reply.send(Failed(error))

    def _end(self, request_id: str) -> _Running | None:
        if running := self._running.pop(request_id, None):
            self._ended_tokens += running.tokens
        return running

    def requeue_untouched(self) -> int:
        """Running requests that have no token yet and were never retried wait again; how many those were."""
        again = [one.chat for one in self._running.values() if one.tokens == 0 and not one.chat.retried]
        for chat in reversed(again):
            del self._running[chat.id]
            self._waiting.appendleft(Chat(chat.id, chat.model, chat.request, chat.reply, retried=True))
        return len(again)
