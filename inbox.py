"""The asyncio end of a ``Reply``: items from actor threads, awaited on the event loop."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any

import pykka

from plimsoll.actors.messages import Ref
from plimsoll.actors.replies import Failed, Reply, Waiting
from plimsoll.errors import Unavailable

# A slow client gets its waiting items in portions: each is written before the next is made.
_PORTION = 256


# A waiting request checks this often that the Supervisor is alive.
ALIVE_CHECK_S = 5.0


class Inbox:
    """A ``Reply`` whose items are awaited on the loop that made it.

    ``send`` may be called from any thread. The loop is woken once per batch: only when somebody waits, and not again
    until they have waited again.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: deque[Any] = deque()
        self._waiting = False
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    def send(self, item: Any) -> None:
        if self._closed:
            return
        # Append before reading the flag; the waiter sets the flag before it looks: one of the two sees the other.
        self._items.append(item)
        if self._waiting:
            self._waiting = False
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to read
                self._loop.call_soon_threadsafe(self._wake)

    async def next_batch(self, timeout_s: float | None = None) -> list[Any]:
        """What has come since the last call, in order and up to 256; an empty list after ``timeout_s`` of silence."""
        self._waiting = True
        if not self._items:
            await self._wait(timeout_s)
        self._waiting = False
        return self.take(_PORTION)

    def take(self, most: int | None = None) -> list[Any]:
        """What is there now, without waiting; not more than ``most``."""
        count = len(self._items)
        return [self._items.popleft() for _ in range(count if most is None else min(count, most))]

    @property
    def arrears(self) -> int:
        """The number of items that were not taken yet; not ``__len__``, for an empty inbox must not be false."""
        return len(self._items)

    def close(self) -> None:
        """Drop what is still coming."""
        self._closed = True
        self._items.clear()

    async def _wait(self, timeout_s: float | None) -> None:
        self._waiter = self._loop.create_future()
        timer = None if timeout_s is None else self._loop.call_later(max(0.0, timeout_s), self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def ask(supervisor: Ref, make_message: Callable[[Reply], Any], timeout_s: float | None = None) -> Any:
    """Tell the message and await its one answer; ``Waiting`` is skipped.

    Raises:
        TimeoutError: no answer within ``timeout_s``.
        PlimsollError: the answer was ``Failed``, or the supervisor is gone.

    """
    loop = asyncio.get_running_loop()
    deadline = None if timeout_s is None else loop.time() + timeout_s
    inbox = Inbox()
    try:
        tell(supervisor, make_message(inbox))
        while True:
            left_s = ALIVE_CHECK_S if deadline is None else deadline - loop.time()
            batch = await inbox.next_batch(left_s)
            for item in batch:
                if isinstance(item, Failed):
                    raise item.error
                if not isinstance(item, Waiting):
                    return item
            if deadline is not None and loop.time() >= deadline:
                raise TimeoutError
            if not batch:
                check_alive(supervisor)
    finally:
        inbox.close()


def tell(supervisor: Ref, message: Any) -> None:
    """``supervisor.tell`` with a dead supervisor as ``Unavailable``."""
    try:
        supervisor.tell(message)
    except pykka.ActorDeadError:
        raise _gone() from None


def check_alive(supervisor: Ref) -> None:
    """Raise ``Unavailable`` when the Supervisor is not running."""
    if not supervisor.is_alive():
        raise _gone()


def _gone() -> Unavailable:
    return Unavailable("the server's supervisor is not running; restart the server", retry_after_s=5)
