"""What requests ask for and this server can't do is left out of them: logged once for each kind, and always counted."""

import logging
from collections import Counter
from contextvars import ContextVar

_log = logging.getLogger("plimsoll.http")

# Kinds become a label of a metric, and a client may call a kind anything.
_MOST_KINDS = 64
_OTHER = "other"


class LeftOut:
    """How many were left out since the start, by what it was (``tool``, ``part``, ``item``) and its kind.

    The application's state owns one; requests that are read by nobody's application have one of their own.
    """

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, ...]] = Counter()

    def note(self, what: str, kind: str | None) -> None:
        """A ``what`` of this kind was left out of a request."""
        named = (what, (kind or "none")[:64])
        if named not in self.counts:
            if len(self.counts) >= _MOST_KINDS:
                named = (what, _OTHER)
            else:
                _log.info("a request has a %s of type %s, which is left out: this server can't do it", *named)
        self.counts[named] += 1


_current: ContextVar[LeftOut | None] = ContextVar("left_out", default=None)


def count_in(counts: LeftOut) -> None:
    """Have what is left out of the request under way counted there."""
    _current.set(counts)


def note(what: str, kind: str | None) -> None:
    """A ``what`` of this kind was left out of the request under way."""
    (_current.get() or LeftOut()).note(what, kind)
