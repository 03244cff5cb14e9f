"""The memory that all request bodies may take together: which body is read now, which waits, which is refused.

Everything here runs on the event loop. A body of at most ``SMALL_BYTES`` is read at once. A larger body waits for its
turn, in which all of its bytes are reserved. Until then nothing is read from its connection, so the rest of the body
stays on the client's machine.
"""

import asyncio
import bisect
import itertools
from collections.abc import Callable
from typing import Any

from sanic import Request

from plimsoll.errors import Unavailable

SMALL_BYTES = 64 * 1024
_MIB = 2**20
# All bodies may take a 16th of the free memory; or as much as the largest body, if that is a quarter of it at most.
_MOST_BYTES = 256 * _MIB
_SHARE, _SHARE_OF_ONE = 16, 4
# Bodies above this size may take three quarters of the room; the last quarter is for smaller ones.
_LARGE_BYTES = _MIB
_WAIT_S = 10.0
_RETRY_AFTER_S = 5.0
# While other bodies wait, a body loses its turn if its client sends nothing for a second, or is slower than this after
# its first second. Counted in checks and not in seconds: an event loop that was held up has not read what clients sent.
_CHECK_S = 0.25
_SILENT_CHECKS = 4
_PACE_BYTES_S = _MIB
_GIVE_BACK_AFTER_S = 1.0


def room_for(available: int | None, largest: int) -> int:
    """How many bytes all bodies may take, with ``available`` bytes of memory free and ``largest`` allowed for one body.

    Without a figure for what is free, ``largest``.
    """
    if available is None:
        return largest
    return min(max(_MOST_BYTES, largest), max(available // _SHARE, min(largest, available // _SHARE_OF_ONE)))


class BodyShare:
    """What one request takes of the budget, from the first byte of its body to the end of its answer.

    ``held`` bytes are reserved or kept for it, ``received`` bytes have come. ``granted``: it has its turn; ``waits``:
    not yet. ``evict`` refuses the request.
    """

    __slots__ = ("checks", "evict", "granted", "held", "received", "seen", "silent", "waits")

    def __init__(self, evict: Callable[[Unavailable], None]) -> None:
        self.evict = evict
        self.held = self.received = self.seen = 0
        self.checks = self.silent = 0
        self.granted = self.waits = False

    @property
    def is_slow(self) -> bool:
        """Whether its client sends so slowly that it should not keep other bodies waiting."""
        seconds = max(0, self.checks - _SILENT_CHECKS) * _CHECK_S
        return self.silent >= _SILENT_CHECKS or self.received < _PACE_BYTES_S * seconds

    def check(self) -> None:
        """Count one check, a quarter of a second after the one before, made while other bodies wait."""
        self.checks += 1
        self.silent = self.silent + 1 if self.received == self.seen else 0
        self.seen = self.received


class BodyBudget:
    """The budget that all connections share.

    ``largest`` is ``server.max_body``; ``available`` returns the free memory in bytes, None where it is not known.
    ``trim_heap`` returns the allocator's unused memory to the system; it is called on a thread a second after large
    bodies are gone.
    """

    def __init__(
        self,
        largest: int,
        available: Callable[[], int | None],
        trim_heap: Callable[[], object],
        wait_s: float = _WAIT_S,
    ) -> None:
        self.largest = largest
        self._available = available
        self._trim_heap = trim_heap
        self._wait_s = wait_s
        # Bytes reserved or kept for bodies that had their turn; bytes that were read of all others.
        self._taken = self._first = 0
        self._reading: set[BodyShare] = set()
        # The waiting bodies: the shortest first, those of one size in the order in which they came.
        self._queue: list[tuple[int, int, BodyShare, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._one = asyncio.Lock()
        self._check_timer: asyncio.TimerHandle | None = None
        self._return: asyncio.TimerHandle | None = None

    @property
    def room(self) -> int:
        """Bytes that bodies may take now."""
        return room_for(self._available(), self.largest)

    @property
    def held(self) -> int:
        """Bytes that are taken: reserved for bodies that are read, kept of those that were, and first bytes."""
        return self._taken + self._first

    @property
    def waiting(self) -> int:
        """How many bodies wait for their turn."""
        return len(self._queue)

    def check(self, size: int) -> None:
        """Raise ``Unavailable`` for a body that has no room even when all others are gone."""
        if size > SMALL_BYTES and size > (room := self.room):
            raise Unavailable(
                f"the request body has {size} bytes, but memory is so full that {room} bytes may be read at a time; "
                "send less, or try again once memory is free (GET /health has the figures)",
                retry_after_s=2 * _RETRY_AFTER_S,
            )

    def note(self, share: BodyShare, count: int) -> None:
        """``count`` more bytes of the body were received."""
        share.received += count
        if not share.granted:
            self._first += count

    async def turn(self, share: BodyShare, size: int) -> None:
        """Wait until a body of ``size`` bytes may be read, and reserve them.

        Raises ``Unavailable``: there is no room for so much, or there was none in time.
        """
        self.check(size)
        if not self._queue and self._fits(size):
            self._grant(share, size)
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (size, next(self._numbers), share, granted)
        bisect.insort(self._queue, entry)
        share.waits = True
        self._advance()
        try:
            async with asyncio.timeout(self._wait_s):
                await granted
        except TimeoutError:
            raise Unavailable(
                f"the request body of {size} bytes found no room within {self._wait_s:g} s: other requests take "
                f"{self._taken} of the {self.room} bytes that all may take together; try again",
                retry_after_s=_RETRY_AFTER_S,
            ) from None
        finally:
            share.waits = False
            if entry in self._queue:
                self._queue.remove(entry)
                self._advance()

    async def let_others_run(self) -> None:
        """Let other tasks run before a large body is decoded, which holds the event loop until it is done."""
        async with self._one:
            await asyncio.sleep(0)

    def keep(self, share: BodyShare, size: int) -> None:
        """The body was read, or is not needed any more; ``size`` bytes are kept of it."""
        self._reading.discard(share)
        if share.held > _LARGE_BYTES:
            self._return_soon()
        self._take(share, size)
        self._advance()

    # ---- inside

    def _take(self, share: BodyShare, size: int) -> None:
        if not share.granted:
            self._first -= share.received
            share.granted = True
        self._taken += size - share.held
        share.held = size

    def _fits(self, size: int) -> bool:
        room = self.room
        is_first = not any(one.held > _LARGE_BYTES for one in self._reading)
        most = room if size <= _LARGE_BYTES or is_first else room - room // 4
        return self._taken + size <= most

    def _grant(self, share: BodyShare, size: int) -> None:
        share.seen = share.received
        self._take(share, size)
        self._reading.add(share)

    def _advance(self) -> None:
        """Give bodies their turn while there is room; as long as any waits, check whether those being read are slow."""
        while self._queue:
            size, _, share, granted = self._queue[0]
            if not granted.done():
                if not self._fits(size):
                    break
                self._grant(share, size)
                granted.set_result(None)
            self._queue.pop(0)
        if self._queue and self._check_timer is None:
            self._check_timer = asyncio.get_running_loop().call_later(_CHECK_S, self._check_again)

    def _check_again(self) -> None:
        self._check_timer = None
        for share in list(self._reading):
            share.check()
            if share.is_slow:
                self._reading.discard(share)
                share.evict(
                    Unavailable(
                        "the rest of the body came too slowly while other requests waited to be read: nothing for a "
                        f"second, or less than {_PACE_BYTES_S} bytes a second; try again",
                        retry_after_s=_RETRY_AFTER_S,
                    )
                )
        self._advance()

    def _return_soon(self) -> None:
        if self._return is None:
            self._return = asyncio.get_running_loop().call_later(_GIVE_BACK_AFTER_S, self._return_now)

    def _return_now(self) -> None:
        self._return = None
        if any(one.held > _LARGE_BYTES for one in self._reading):
            self._return_soon()
        else:
            asyncio.get_running_loop().run_in_executor(None, self._trim_heap)


class HttpRequest(Request[Any, Any]):
    """Sanic's request. Its body is read within the budget at ``app.ctx.bodies``, into one buffer."""

    share: BodyShare | None = None

    async def receive_body(self) -> None:
        """Read all of it. Raises ``Unavailable`` where there is no room, as ``BodyBudget.turn`` does."""
        if self.body or self.share is not None:
            return
        stream: Any = self.stream
        bodies: BodyBudget = self.app.ctx.bodies
        # The length of a chunked body is not known before its end.
        size = stream.request_max_size if stream.request_body == "chunked" else stream.request_bytes
        if stream.request_body != "chunked" and size <= stream.request_max_size:
            try:
                bodies.check(size)
            except Unavailable:
                if stream.expecting_continue:  # the client asks before it sends the body, and need not send it
                    stream.expecting_continue = False
                    stream.protocol.answer_and_close()
                raise
        self.share = share = BodyShare(stream.protocol.refuse)
        buffer = bytearray()
        async for data in stream:
            buffer += data
            bodies.note(share, len(data))
            if len(buffer) > SMALL_BYTES and not share.granted:
                if not stream.protocol.transport.is_closing():
                    stream.protocol.transport.pause_reading()  # Sanic resumes it when it wants more
                await bodies.turn(share, size)
            if share.granted and stream.request_body is True and not stream.recv_buffer:
                await self._fill(buffer, share)
        if share.granted:
            await bodies.let_others_run()
        bodies.keep(share, len(buffer))
        self.body = buffer  # type: ignore[assignment] # decoders take any buffer

    @property
    def waits_for_turn(self) -> bool:
        """Whether the body waits for its turn to be read."""
        return self.share is not None and self.share.waits

    def let_go(self, kept: int) -> None:
        """Drop the raw body; ``kept`` bytes are what was decoded from it."""
        self.body = b""
        if self.share is not None:
            self.app.ctx.bodies.keep(self.share, kept)

    async def _fill(self, buffer: bytearray, share: BodyShare) -> None:
        """Read the rest of a body of known length, past Sanic's own reader, which would copy it three times."""
        stream: Any = self.stream
        bodies: BodyBudget = self.app.ctx.bodies

        def take(data: bytes) -> None:
            buffer.extend(data)
            bodies.note(share, len(data))

        stream.protocol.sink = take
        try:
            while stream.request_bytes_left:
                await stream._receive_more()  # noqa: SLF001 - as Sanic's own reader does
        finally:
            stream.protocol.sink = None
