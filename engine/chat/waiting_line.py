"""Requests that wait to join the batch: in the order of arrival, answers that had to pause before all others."""

from collections import deque
from collections.abc import Iterator

from plimsoll.engine.chat.running import Answer


class WaitingLine:
    """First come, first served for memory: if short requests that fit could pass, a long one might never fit.

    An answer that had to pause came before all that have not begun, so it goes back to its place of then.
    """

    def __init__(self) -> None:
        self._line: deque[Answer] = deque()

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[Answer]:
        """In the order of the line; requests may leave it meanwhile."""
        return iter(list(self._line))

    def add(self, answer: Answer) -> None:
        """A request that has just come, or an answer that has to pause."""
        self._line.insert(sum(1 for one in self._line if one.arrived < answer.arrived), answer)

    def remove(self, request_id: str) -> Answer | None:
        """Take the request out; None where it does not wait here."""
        for answer in self._line:
            if answer.id == request_id:
                self._line.remove(answer)
                return answer
        return None

    def clear(self) -> None:
        self._line.clear()
