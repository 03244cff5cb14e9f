"""The requests of one model that wait: for its next life, its load, its next worker, or their turn on this one."""

import math
from collections import deque
from collections.abc import Iterator

import msgspec

from plimsoll.actors.messages import Chat
from plimsoll.actors.replies import Failed, Finished, Waiting
from plimsoll.actors.resume import Loss, Resume, too_late
from plimsoll.engine.protocol import Usage
from plimsoll.errors import PlimsollError

# Rounding may leave so much of a wait that is over.
_NO_TIME_S = 1e-3


def _end_of_wait(chat: Chat, patience_s: float) -> float:
    if chat.resume:
        return chat.resume.until
    return math.inf if chat.since is None or patience_s == 0 else chat.since + patience_s


def _paused(chat: Chat, loss: Loss) -> Chat:
    if chat.resume:
        return chat
    return msgspec.structs.replace(chat, resume=Resume((), loss.at, loss.at + loss.patience_s, loss.why, loss.error))


def is_suspect(chat: Chat) -> bool:
    """Whether its last worker died before it gave it a token, and it may be the reason."""
    return chat.resume is not None and chat.resume.is_suspect


class WaitingRequests:
    """Those that have lost a worker come first. A ModelActor has one for its life, the Supervisor one for the next."""

    def __init__(self) -> None:
        self._line: deque[Chat] = deque()

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[Chat]:
        return iter(self._line)

    def add(self, chat: Chat) -> None:
        """``chat`` waits its turn; one that has lost a worker waits behind others of its kind, before all others."""
        if chat.resume is None:
            self._line.append(chat)
        else:
            self._line.insert(sum(one.resume is not None for one in self._line), chat)

    def take(self) -> list[Chat]:
        """Remove and return them, in order; the caller answers them."""
        line = list(self._line)
        self._line.clear()
        return line

    def take_overdue(self, now: float) -> list[tuple[Chat, Resume]]:
        """Remove and return those that have lost a worker and have waited for as long as they may."""
        overdue = [(chat, chat.resume) for chat in self._line if chat.resume and now >= chat.resume.until]
        for chat, _ in overdue:
            self._line.remove(chat)
        return overdue

    def cancel(self, request_id: str) -> bool:
        """Whether the request waits here; then it ends."""
        chat = next((chat for chat in self._line if chat.id == request_id), None)
        if chat is None:
            return False
        self._line.remove(chat)
        chat.reply.send(Finished("cancelled", Usage()))
        return True

    def progress(self, item: Waiting) -> None:
        """Tell all how far things are."""
        for chat in self._line:
            chat.reply.send(item)

    def fail(self, error: PlimsollError) -> None:
        """End all with ``error``."""
        while self._line:
            self._line.popleft().reply.send(Failed(error))

    def paused(self) -> list[Resume]:
        """What those take along that wait whatever the level of memory."""
        return [chat.resume for chat in self._line if chat.resume and chat.is_paused]

    def last_end(self, patience_s: float) -> float:
        """When the last of them has waited for as long as it may; 0 where none has to end."""
        ends = [_end_of_wait(chat, patience_s) for chat in self._line]
        return max((end for end in ends if end < math.inf), default=0.0)

    def pause(self, loss: Loss, full_since: float) -> int:
        """What waits may go on waiting whatever the level of memory, like a request that was running.

        Requests that came when memory was full already, since ``full_since``, end with the loss's error. Returns how
        many of the others have been paused newly.
        """
        waiting, self._line = self._line, deque()
        for chat in waiting:
            if chat.resume is None and chat.since is not None and chat.since >= full_since:
                chat.reply.send(Failed(loss.error))
            else:
                self._line.append(_paused(chat, loss))
        return sum(chat.resume is None for chat in waiting if chat.since is None or chat.since < full_since)

    def wait_anew(self, loss: Loss) -> None:
        """A worker was there, and while others ran on it those that wait for their turn waited for no load.

        The worker has died, so a new wait begins for those that have lost a worker before.
        """
        if loss.patience_s == 0:
            return
        times = {"since": loss.at, "until": loss.at + loss.patience_s}
        self._line = deque(
            msgspec.structs.replace(chat, resume=msgspec.structs.replace(chat.resume, **times)) if chat.resume else chat
            for chat in self._line
        )

    def wait_for_load(self, now: float) -> None:
        """From now on those that do not wait yet wait for their model to be loaded."""
        self._line = deque(
            msgspec.structs.replace(chat, since=now) if chat.since is None else chat for chat in self._line
        )

    def load_begins(self) -> None:
        """However long that takes, nobody's wait ends meanwhile."""
        self._line = deque(msgspec.structs.replace(chat, since=None) for chat in self._line)

    def first_end(self, patience_s: float) -> float:
        """When the first waiting request has waited for as long as it may; infinity where none does."""
        return min((_end_of_wait(chat, patience_s) for chat in self._line), default=math.inf)

    def end_overdue(
        self, now: float, patience_s: float, why_not: PlimsollError | None, otherwise: PlimsollError
    ) -> None:
        """End those that have waited for as long as they may.

        With ``why_not`` if the load was held up, else with what paused them, ``otherwise`` if nothing has.
        """
        for chat in [chat for chat in self._line if now >= _end_of_wait(chat, patience_s) - _NO_TIME_S]:
            self._line.remove(chat)
            error = why_not or (chat.resume.error if chat.resume else otherwise)
            chat.reply.send(Failed(too_late(error, patience_s)))
