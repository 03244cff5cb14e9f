"""A client's connection: Sanic's, with the gate in front of whatever it asks."""

from typing import Any

from sanic.server.protocols.http_protocol import HttpProtocol

from plimsoll.http.front import AnyRequest


class Connection(HttpProtocol):
    """Sanic's protocol. Every request passes the ``Gate`` at ``app.ctx.gate`` before it is routed.

    Not a middleware: those run after the whole body was read, and some of Sanic's error paths leave them out.
    """

    __slots__ = ("_gate",)

    def __init__(self, **sanics: Any) -> None:
        super().__init__(**sanics)
        self._gate = self.app.ctx.gate
        self.request_handler = self._handle

    async def _handle(self, request: AnyRequest) -> None:
        answer = self._gate.admit(request)
        if answer is None:
            await self.app.handle_request(request)
        else:
            response = await request.respond(answer)
            await response.send(end_stream=True)
