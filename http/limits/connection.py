"""A client's connection: Sanic's, with the gate in front of what it asks, and bounds on what it takes."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from sanic.exceptions import RequestTimeout
from sanic.http import Stage
from sanic.server.protocols.http_protocol import HttpProtocol

from plimsoll.errors import Unavailable
from plimsoll.http.errors import envelope
from plimsoll.http.front import AnyRequest
from plimsoll.http.limits.patience import Look, Phase, Watch

# For a client that still sends to read why it was answered so: closing at once would often reset it before.
_FAREWELL_S = 1.0
_MOST_FAREWELLS = 64


class Connection(HttpProtocol):
    """Sanic's protocol. Every request passes the ``Gate`` at ``app.ctx.gate`` before it is routed.

    Not a middleware: those run after the whole body was read, and some of Sanic's error paths leave them out. Time is
    kept by the ``Sweeper`` at ``app.ctx.sweeper`` instead of Sanic's timers, which every byte sets back.
    """

    __slots__ = ("_farewell", "_gate", "_pauses", "_served", "_sweeper", "waiting", "watch")
    # Of the connections that are being left like that, over all servers of this process.
    _farewells = 0

    def __init__(self, **sanics: Any) -> None:
        super().__init__(**sanics)
        self._gate = self.app.ctx.gate
        self._sweeper = self.app.ctx.sweeper
        self._farewell: asyncio.TimerHandle | None = None
        self._pauses = self._served = 0
        self.watch: Watch | None = None
        # How many items of the running answer are not written yet.
        self.waiting: Callable[[], int] | None = None
        self.request_handler = self._handle

    async def _handle(self, request: AnyRequest) -> None:
        self._served += 1
        answer = self._gate.admit(request)
        if answer is not None:
            response = await request.respond(answer)
            await response.send(end_stream=True)
            return
        try:
            await self.app.handle_request(request)
        finally:
            self.waiting = None  # it holds the request

    def connection_made(self, transport: Any) -> None:
        if self._sweeper.full:
            self._turn_away(transport)
        else:
            super().connection_made(transport)  # type: ignore[no-untyped-call] # Sanic's

    def data_received(self, data: bytes) -> None:
        if self._farewell is None:
            super().data_received(data)

    def close(self, timeout: float | None = None) -> None:
        """A request that was not read whole is not cut off: what else comes of it is dropped for a while."""
        transport = self.transport
        if self._farewell is None and self.recv_buffer and transport is not None and not transport.is_closing():
            transport.resume_reading()
            self._part(transport)
        else:
            super().close(timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._farewell is not None:
            self._farewell.cancel()
            Connection._farewells -= 1
        if self.transport is not None:  # else it was turned away, and Sanic never heard of it
            super().connection_lost(exc)  # type: ignore[no-untyped-call] # Sanic's

    def pause_writing(self) -> None:
        self._pauses += 1
        super().pause_writing()  # type: ignore[no-untyped-call] # Sanic's

    def check_timeouts(self) -> None:
        """Sanic's own timers, of which there is one per connection, are not used."""

    def look(self) -> Look | None:
        """What is to be seen now; None when it is closing, which Sanic bounds itself."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return None
        waiting, buffered = self.waiting() if self.waiting else 0, transport.get_write_buffer_size()
        phase = self._phase()
        if phase is Phase.IDLE and buffered:
            phase = Phase.ANSWER  # for Sanic it is written; the client still reads it
        return Look(phase, self._served, self._pauses, not self._can_write.is_set(), buffered, waiting)

    def peer(self) -> str:
        address = self.transport.get_extra_info("peername") if self.transport else None
        return f"{address[0]}:{address[1]}" if address else "a client"

    def refuse(self, text: str) -> None:
        """Answer 408 and close; what is left of the request is not read."""
        if self.http is not None and self._task:
            self.http.exception = RequestTimeout(text)
            self.http.request_body = None
            self._task.cancel()

    def cut(self) -> None:
        """End it at once; the handler is cancelled, and with it what runs in a model."""
        if self.transport:
            self.transport.abort()

    def _phase(self) -> Phase:
        http = self.http
        if http is None:  # not "not http": that says that nothing is being handled
            return Phase.IDLE if self._served else Phase.FRESH
        if http.stage is Stage.REQUEST:
            return Phase.HEADERS
        if http.stage is Stage.IDLE:
            if self._served and http.request_body:
                return Phase.DRAIN
            return Phase.IDLE if self._served else Phase.FRESH
        return Phase.BODY if http.stage is Stage.HANDLER and http.request_body else Phase.ANSWER

    def _turn_away(self, transport: Any) -> None:
        """503, outside of all counts but one: a crowd of those that linger would be a crowd again."""
        self._sweeper.turned_away += 1
        limit = self._sweeper.limits.connections
        error = Unavailable(f"the server has {limit} connections open, its most (limits.connections); try again soon")
        body = msgspec.json.encode(envelope(error))
        head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
        transport.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        self._part(transport)

    def _part(self, transport: Any) -> None:
        """Say that nothing more comes, and end the connection when the client has heard, or after a second."""
        left_s = _FAREWELL_S if Connection._farewells < _MOST_FAREWELLS else 0.0
        Connection._farewells += 1
        self._farewell = self.loop.call_later(left_s, transport.abort)
        if transport.can_write_eof():
            transport.write_eof()
