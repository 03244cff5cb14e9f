"""What requests ask for and this server can't do is left out of them: logged once for each kind, and always counted."""

import logging
from collections import Counter

_log = logging.getLogger("plimsoll.http")

# Kinds become a label of a metric, and a client may call a kind anything.
_MOST_KINDS = 64
_OTHER = "other"

counts: Counter[tuple[str, ...]] = Counter()
"""How many were left out since the start, by what it was (``tool``, ``part``, ``item``) and its kind."""


def note(what: str, kind: str | None) -> None:
    """A ``what`` of this kind was left out of a request."""
    named = (what, (kind or "none")[:64])
    if named not in counts:
        if len(counts) >= _MOST_KINDS:
            named = (what, _OTHER)
        else:
            _log.info("a request has a %s of type %s, which is left out: this server can't do it", *named)
    counts[named] += 1
