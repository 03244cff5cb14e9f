"""Answers as a stream over HTTP: keep-alive while they wait, and an early failure with its own status."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Protocol

from sanic import HTTPResponse

from plimsoll.actors.messages import Finished, Waiting
from plimsoll.errors import PlimsollError, Unavailable
from plimsoll.http.errors import as_plimsoll
from plimsoll.http.front import AnyRequest
from plimsoll.http.stream import Answer

EVENT_STREAM = "text/event-stream; charset=utf-8"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_MB = 1_000_000


class Form(Protocol):
    """One API's wire form of a stream. Each method returns the bytes to send, none for nothing."""

    def events(self, index: int, batch: list[Any]) -> bytes:
        """What came for answer number ``index``: replies of ``actors.messages``, ``Waiting`` among them.

        Called with the batch that has ``Finished`` once per answer; never with a ``Failed``.
        """

    def silence(self, waiting: Waiting | None) -> bytes:
        """Nothing was sent for the keep-alive time; ``waiting`` is the last one heard of since the last output."""

    def failure(self, error: PlimsollError) -> bytes:
        """The end of a stream that can't go on; only when something was sent before."""


class Stream:
    """Answers written to one response as they come.

    Nothing is sent before the form has bytes for the first time, so that a failure until then is raised and gets an
    HTTP status of its own; later ones become ``form.failure``. Silence is broken after ``keepalive_s``.
    """

    def __init__(
        self, request: AnyRequest, form: Form, keepalive_s: float, *, content_type: str = EVENT_STREAM
    ) -> None:
        self._request = request
        self._form = form
        self._keepalive_s = keepalive_s
        self._content_type = content_type
        self._sent_s = time.monotonic()
        self._response: HTTPResponse | None = None
        self._waiting: Waiting | None = None
        self._sending = asyncio.Lock()

    async def run(self, *answers: Answer) -> None:
        """Stream them side by side until all have ended. The first failure ends them all."""
        # What piles up while the client does not read is the sweeper's business.
        connection: Any = self._request.stream.protocol  # type: ignore[union-attr] # Sanic's HTTP/1 one
        connection.waiting = lambda: sum(answer.waiting for answer in answers)
        try:
            await side_by_side([self._follow(index, answer) for index, answer in enumerate(answers)])
        except Exception as error:
            if self._response is None:
                raise
            told = as_plimsoll(error, self._request.path)
            self._request.app.ctx.front.recorder.error(told.code)
            await self._send(self._form.failure(told))
        if self._response is not None:
            await self._response.send(end_stream=True)

    async def _follow(self, index: int, answer: Answer) -> None:
        async with answer:
            async for batch in answer.batches(self._silence_left_s):
                await self._pass_on(index, batch)

    async def _pass_on(self, index: int, batch: list[Any]) -> None:
        cancelled = take_cancelled(batch)
        if out := self._form.events(index, batch):
            self._waiting = None
        elif batch and isinstance(batch[-1], Waiting):
            self._waiting = batch[-1]
        async with self._sending:
            if not out and self._silence_left_s() <= 0:
                out = self._form.silence(self._waiting)
                self._sent_s = time.monotonic()
            if out:
                await self._send(out)
        if cancelled:
            raise cancelled

    def _silence_left_s(self) -> float:
        return self._sent_s + self._keepalive_s - time.monotonic()

    async def _send(self, data: bytes) -> None:
        if self._response is None:
            self._response = await self._request.respond(status=200, headers=HEADERS, content_type=self._content_type)
        await self._response.send(data)
        self._sent_s = time.monotonic()


async def side_by_side(follow: Sequence[Any]) -> None:
    """Await them together; the first that raises ends the others, and its exception is raised."""
    if len(follow) == 1:
        await follow[0]
        return
    try:
        async with asyncio.TaskGroup() as group:
            for one in follow:
                group.create_task(one)
    except BaseExceptionGroup as error:
        raise error.exceptions[0] from None


def take_cancelled(batch: list[Any]) -> PlimsollError | None:
    """Take an ending out of the batch that says the server itself cancelled; it is no ending for a client."""
    if batch and isinstance(batch[-1], Finished) and batch[-1].reason == "cancelled":
        batch.pop()
        return Unavailable("the answer was cancelled by the server", retry_after_s=1)
    return None


def waiting_text(waiting: Waiting | None) -> str:
    """What an answer waits for, for people."""
    if waiting is None:
        return "waiting"
    if waiting.stage == "queue":
        return "waiting in the queue"
    if waiting.stage == "prefill":
        return f"reading the prompt: {waiting.done}/{waiting.total or '?'} tokens"
    total = f"{waiting.total / _MB:.0f}" if waiting.total else "?"
    return f"waiting for the model to load: {waiting.stage} {waiting.done / _MB:.0f}/{total} MB"


def comment(waiting: Waiting | None) -> bytes:
    """A line that clients of server-sent events ignore and that keeps proxies from closing a silent stream."""
    return b": " + waiting_text(waiting).encode() + b"\n\n"
