"""Disk reads of handlers: on threads that a dead disk may block without harm, and with a time limit."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from plimsoll.catalog.disk import DISK, DiskSilent, Place
from plimsoll.errors import Unavailable

_T = TypeVar("_T")

ANSWER_S = 5.0
"""How long a client waits for a disk at most."""


async def read_disk(place: Place, work: Callable[[], _T], limit_s: float = ANSWER_S) -> _T:
    """The result of ``work``, which reads ``place``. Raises ``Unavailable`` if the disk does not answer in time."""
    return await disk_answer(DISK.ask(place, work), place.path, limit_s)


async def disk_answer(future: "Future[_T]", what: str, limit_s: float = ANSWER_S) -> _T:
    """The result of disk work that runs already. Raises as ``read_disk`` does; the error names ``what``."""
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), limit_s)
    except DiskSilent as error:
        raise Unavailable(str(error), retry_after_s=5.0) from None
    except TimeoutError:
        if future.done() and not future.cancelled():  # the file system itself raised TimeoutError
            raise
        text = f"{what} has not answered for {limit_s:g} s; look at the disk or the network share that it is on"
        raise Unavailable(text, retry_after_s=5.0) from None
