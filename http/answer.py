"""Answers of models on the event loop: asked of the Supervisor, followed item by item or collected whole."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self

import msgspec
import pykka

from plimsoll.actors.messages import Cancel, Chat, KeepAlive, Ref
from plimsoll.actors.replies import (
    Delta,
    Failed,
    Finished,
    Logprobs,
    PromptLogprobs,
    ToolCallDelta,
    Vectors,
    Waiting,
)
from plimsoll.engine.protocol import Request, TokenLogprob, Usage
from plimsoll.errors import Unavailable
from plimsoll.http.recorder import Record
from plimsoll.inbox import ALIVE_CHECK_S, Inbox, check_alive, tell


class Answer:
    """One request to a model. Entering it tells ``Chat``; leaving it before its ending has come tells ``Cancel``.

    ``hear`` gets every batch of items as it comes. ``keep_alive`` is told once the first item of the answer proper has
    come: only then is the message sure to meet the life of the model that answers.
    """

    def __init__(
        self,
        supervisor: Ref,
        model: str,
        request: Request,
        record: Record | None = None,
        *,
        answer_id: str = "",
        hear: Callable[[list[Any]], None] | None = None,
        keep_alive: KeepAlive | None = None,
    ) -> None:
        self.id = answer_id or secrets.token_hex(16)
        self.model = model
        self._supervisor = supervisor
        self._request = request
        self._record = record
        self._hear = hear
        self._keep_alive = keep_alive
        self._inbox = Inbox()
        self._ended = False

    @property
    def waiting(self) -> int:
        """How many items have come that were not taken yet."""
        return self._inbox.arrears

    async def __aenter__(self) -> Self:
        tell(self._supervisor, Chat(self.id, self.model, self._request, self._inbox))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._note(self._inbox.take())
        self._inbox.close()
        if self._record:
            self._record.abandoned()
        if not self._ended:
            with contextlib.suppress(pykka.ActorDeadError):
                self._supervisor.tell(Cancel(self.id, self.model))

    async def batches(self, silence_s: Callable[[], float] | None = None) -> AsyncIterator[list[Any]]:
        """Batches of ``Waiting``, the parts of the answer, and ``Finished``.

        An empty list says that ``silence_s()`` seconds went by without an item.

        Raises:
            PlimsollError: the request ended with ``Failed``, or the server itself cancelled it. What came before
                was yielded.

        """
        while not self._ended:
            batch = await self._inbox.next_batch(silence_s() if silence_s else ALIVE_CHECK_S)
            self._note(batch)
            if not batch:
                check_alive(self._supervisor)
            failed = _take_failed(batch)
            if batch or failed is None:
                if self._hear:
                    self._hear(batch)
                if self._keep_alive and not all(isinstance(item, Waiting) for item in batch):
                    tell(self._supervisor, self._keep_alive)
                    self._keep_alive = None
                yield batch
            if failed is not None:
                # The error stays in no variable of this frame: both would keep each other, and the request's body.
                raise failed.error

    def _note(self, batch: list[Any]) -> None:
        if self._record:
            self._record.batch(batch)
        if batch and isinstance(batch[-1], Finished | Failed):
            self._ended = True


def _take_failed(batch: list[Any]) -> Failed | None:
    """Take the ending out of a batch whose answer was not finished."""
    last = batch[-1] if batch else None
    if isinstance(last, Failed):
        batch.pop()
        return last
    if isinstance(last, Finished) and last.reason == "cancelled":
        batch.pop()
        return Failed(Unavailable("the answer was cancelled by the server", retry_after_s=1))
    return None


class Call(msgspec.Struct):
    """A whole tool call; ``arguments`` is JSON."""

    name: str = ""
    arguments: str = ""

    @property
    def values(self) -> Any:
        """The arguments as JSON values; text that is no JSON (of an answer that was cut short) stands in ``_raw``."""
        try:
            return msgspec.json.decode(self.arguments or "{}")
        except (msgspec.DecodeError, RecursionError):
            return {"_raw": self.arguments}


class WholeAnswer(msgspec.Struct):
    """All of one answer. ``reasoning_tokens`` of the completion were for what is not ``text``."""

    text: str = ""
    reasoning: str = ""
    reasoning_tokens: int = 0
    calls: list[Call] = []
    logprobs: list[TokenLogprob] = []
    prompt_logprobs: list[TokenLogprob] = []
    vectors: Vectors | None = None
    reason: str = "stop"
    usage: Usage = Usage()
    stop: str | None = None

    def add(self, batch: list[Any]) -> None:
        """Add the items of a batch; ``Waiting`` says nothing here."""
        for item in batch:
            if isinstance(item, Delta):
                if item.reasoning:
                    self.reasoning += item.text
                    self.reasoning_tokens = item.tokens
                else:
                    self.text += item.text
            elif isinstance(item, Logprobs):
                self.logprobs += item.tokens
            elif isinstance(item, PromptLogprobs):
                self.prompt_logprobs = item.tokens
            elif isinstance(item, ToolCallDelta):
                self._add_call(item)
            elif isinstance(item, Vectors):
                self.vectors = item
            elif isinstance(item, Finished):
                self.reason, self.usage, self.stop = item.reason, item.usage, item.stop

    def _add_call(self, part: ToolCallDelta) -> None:
        while len(self.calls) <= part.index:
            self.calls.append(Call())
        call = self.calls[part.index]
        call.name += part.name
        call.arguments += part.arguments


async def collect(answers: Sequence[Answer]) -> list[WholeAnswer]:
    """Run ``answers`` side by side to their ends. The first failure is raised and cancels the others."""
    wholes = [WholeAnswer() for _ in answers]
    await side_by_side([_fill(whole, answer) for whole, answer in zip(wholes, answers, strict=True)])
    return wholes


async def _fill(whole: WholeAnswer, answer: Answer) -> None:
    async with answer:
        async for batch in answer.batches():
            whole.add(batch)


async def side_by_side(tasks: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Await all ``tasks`` together; the first that raises ends the others, and its exception is raised."""
    if len(tasks) == 1:
        await tasks[0]
        return
    try:
        async with asyncio.TaskGroup() as group:
            for task in tasks:
                group.create_task(task)
    except BaseExceptionGroup as error:
        raise error.exceptions[0] from None
