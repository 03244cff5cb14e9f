"""Requests that wait for a place in the batch: first come, first served, and nobody waits for memory for ever."""

from collections import deque
from dataclasses import dataclass

from plimsoll.engine.prompts import Prompt

PATIENCE_S = 60.0


@dataclass(slots=True, eq=False)
class Waiting:
    """``held_since`` is when memory began to hold up the line with this request in it."""

    id: str
    prompt: Prompt
    held_since: float | None = None


class WaitingLine:
    """Nobody overtakes, not even a short request that would fit: a long one would wait for ever."""

    def __init__(self) -> None:
        self._line: deque[Waiting] = deque()

    def __len__(self) -> int:
        return len(self._line)

    @property
    def first(self) -> Waiting:
        return self._line[0]

    def add(self, request_id: str, prompt: Prompt) -> None:
        self._line.append(Waiting(request_id, prompt))

    def pop(self) -> Waiting:
        return self._line.popleft()

    def remove(self, request_id: str) -> Waiting | None:
        """Take one out, wherever it stands; None where it does not wait here."""
        for waiting in self._line:
            if waiting.id == request_id:
                self._line.remove(waiting)
                return waiting
        return None

    def hold(self, now: float) -> list[Waiting]:
        """The first one does not fit in memory; those for whom this has gone on for ``PATIENCE_S`` leave the line."""
        overdue = []
        for waiting in list(self._line):
            if waiting.held_since is None:
                waiting.held_since = now
            elif now - waiting.held_since >= PATIENCE_S:
                self._line.remove(waiting)
                overdue.append(waiting)
        return overdue

    def flow(self) -> None:
        """Memory holds nobody up."""
        for waiting in self._line:
            waiting.held_since = None

    def clear(self) -> None:
        self._line.clear()
