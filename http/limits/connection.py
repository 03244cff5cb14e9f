"""A client's connection: Sanic's, with the gate in front of every request, and bounds on time, memory and number."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from sanic.http import Stage
from sanic.server.protocols.http_protocol import HttpProtocol

from plimsoll.errors import Unavailable
from plimsoll.http.errors import envelope
from plimsoll.http.limits.body_budget import HttpRequest
from plimsoll.http.limits.connection_slots import ConnectionSlots
from plimsoll.http.limits.connection_timeouts import Observation, Phase, WaitTimes

# A connection that is refused stays half open for a moment. Closed at once while the client still sends, it would be
# reset, and the client could not read the refusal.
_LINGER_S = 1.0
_MOST_LINGERING = 64


class Connection(HttpProtocol):
    """Sanic's protocol. Every request passes the ``Gate`` at ``app.ctx.gate`` before it is routed.

    The gate is no middleware: middlewares run after the whole body was read, and some of Sanic's error paths skip them.
    The ``ConnectionSweeper`` at ``app.ctx.sweeper`` ends slow connections. Sanic's own timers are not used, because
    each byte that comes resets them.
    """

    __slots__ = ("_cut_short", "_gate", "_linger", "_pauses", "_served", "_slots", "sink", "wait_times", "waiting")
    # The number of connections that linger, over all servers of this process.
    _lingering = 0

    def __init__(self, **sanics: Any) -> None:
        super().__init__(**sanics)
        self._gate = self.app.ctx.gate
        self._slots: ConnectionSlots = self.app.ctx.slots
        # Whether the client may still be sending a request that was answered.
        self._cut_short = False
        self._linger: asyncio.TimerHandle | None = None
        self._pauses = self._served = 0
        # Where bytes of a body go instead of Sanic's buffer.
        self.sink: Callable[[bytes], None] | None = None
        self.wait_times: WaitTimes | None = None
        # How many items of the running answer are not written yet.
        self.waiting: Callable[[], int] | None = None
        self.request_handler = self._handle

    async def _handle(self, request: HttpRequest) -> None:
        self._served += 1
        self._slots.busy(self)
        try:
            if self._slots.is_in_reserve(self):
                await self._take_slot(request)
            answer = self._gate.admit(request)
            if answer is None:
                await self.app.handle_request(request)
            else:
                response = await request.respond(answer)
                await response.send(end_stream=True)
        finally:
            self.waiting = None  # else it would keep the request alive
            request.let_go(0)
            self._slots.rest(self)

    async def _take_slot(self, request: HttpRequest) -> None:
        """Raise ``Unavailable`` if no slot is free and none becomes free within a second."""
        if self._slots.may_request(self, request.path, request.client_ip):
            return
        if (wait_s := self._slots.next_free_s()) is not None:
            await asyncio.sleep(wait_s + 0.01)  # a timer may be a little early
            if self._slots.may_request(self, request.path, request.client_ip):
                return
        self._slots.turned_away += 1
        self.answer_and_close()
        raise self._no_slot()

    def connection_made(self, transport: Any) -> None:
        if self._slots.enter(self):
            super().connection_made(transport)  # type: ignore[no-untyped-call] # Sanic's
        else:
            self._turn_away(transport)

    def data_received(self, data: bytes) -> None:
        if self._linger is None:
            if not self.recv_buffer:
                self._slots.heard(self)
            if data := self._without_body(data):
                super().data_received(data)

    def close(self, timeout: float | None = None) -> None:
        """Close. If a request was not read whole, drop what still comes of it for a while instead of resetting it."""
        transport = self.transport
        unread = self.recv_buffer or self._cut_short
        if self._linger is None and unread and transport is not None and not transport.is_closing():
            transport.resume_reading()
            self._finish(transport)
        else:
            super().close(timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self._slots.leave(self)
        if self._linger is not None:
            self._linger.cancel()
            Connection._lingering -= 1
        if self.transport is not None:  # else it was turned away before Sanic knew of it
            super().connection_lost(exc)  # type: ignore[no-untyped-call] # Sanic's

    def pause_writing(self) -> None:
        self._pauses += 1
        super().pause_writing()  # type: ignore[no-untyped-call] # Sanic's

    def check_timeouts(self) -> None:
        """Do nothing: Sanic's own timers, one per connection, are not used."""

    def observe(self) -> Observation | None:
        """The connection as it is now; None while it is closing, which Sanic itself bounds."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return None
        waiting, buffered = self.waiting() if self.waiting else 0, transport.get_write_buffer_size()
        phase = self._phase()
        if phase is Phase.IDLE and buffered:
            phase = Phase.ANSWER  # Sanic has written the answer, but the client still reads it
        return Observation(phase, self._served, self._pauses, not self._can_write.is_set(), buffered, waiting)

    def peer(self) -> str:
        address = self.transport.get_extra_info("peername") if self.transport else None
        return f"{address[0]}:{address[1]}" if address else "a client"

    def refuse(self, error: Exception) -> None:
        """Answer with ``error`` and close without reading the rest of the request."""
        if self.http is not None and self._task:
            self.http.exception = error
            self.answer_and_close()
            self._task.cancel()

    def is_idle(self) -> bool:
        seen = self.observe()
        return seen is not None and seen.phase in (Phase.FRESH, Phase.IDLE, Phase.HEADERS)

    def close_for_another(self) -> None:
        if self.transport is None or self._phase() is Phase.IDLE:
            self.close()  # clients expect that an idle connection may be closed
        else:
            self._turn_away(self.transport)

    def cut(self) -> None:
        """End it at once. Its handler is cancelled, and with it the request to the model."""
        if self.transport:
            self.transport.abort()

    def _phase(self) -> Phase:
        http = self.http
        if http is None:  # not "not http": Sanic's object is false while it handles nothing
            return Phase.IDLE if self._served else Phase.FRESH
        if http.stage is Stage.REQUEST:
            return Phase.HEADERS
        if http.stage is Stage.IDLE:
            if self._served and http.request_body:
                return Phase.DRAIN
            return Phase.IDLE if self._served else Phase.FRESH
        if http.stage is Stage.HANDLER and http.request_body:
            return Phase.ANSWER if http.request.waits_for_turn else Phase.BODY
        return Phase.ANSWER

    def _without_body(self, data: bytes) -> bytes:
        """``data`` without the bytes that the sink takes, or that belong to a refused body and are dropped."""
        refused = self.sink is None and self._phase() is Phase.DRAIN and self.http.request_body is True
        if self.sink is None and not refused:
            return data
        count = min(len(data), self.http.request_bytes_left - len(self.recv_buffer))
        self.http.request_bytes_left -= count
        if self.sink is not None:
            self.sink(data[:count])
        if self.http.request_bytes_left == 0:
            self._data_received.set()  # Sanic waits for more of it
        return data[count:]

    def answer_and_close(self) -> None:
        """Make the next answer the last one; the rest of the request is not waited for."""
        self._cut_short = bool(self.http.request_body)
        self.http.keep_alive, self.http.request_body = False, None

    def _no_slot(self) -> Unavailable:
        text = f"the server has {self._slots.most} connections open, its most (limits.connections); try again soon"
        return Unavailable(text, retry_after_s=1)

    def _turn_away(self, transport: Any) -> None:
        """Answer 503 without taking a slot."""
        body = msgspec.json.encode(envelope(self._no_slot()))
        head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
        transport.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        self._finish(transport)

    def _finish(self, transport: Any) -> None:
        """Send the end of the stream, and end the connection once the client has closed it, or after a second."""
        left_s = _LINGER_S if Connection._lingering < _MOST_LINGERING else 0.0
        Connection._lingering += 1
        self._linger = self.loop.call_later(left_s, transport.abort)
        if transport.can_write_eof():
            transport.write_eof()
