"""The server's live events (GET /admin/events), over its restarts."""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlencode

from plimsoll.cli.client import Client, Refused, Unauthorised, Unreachable

_AGAIN_S = 1.0
# The server breaks its silence every server.keepalive, 5 s unless it was changed.
_SILENCE_S = 60.0


class Heard(NamedTuple):
    """One event: ``kind`` is hello, sample, models or journal."""

    kind: str
    data: dict[str, Any]


class Lost(NamedTuple):
    """The server is gone; it is asked for again every second."""

    reason: str


def follow(client: Client, *only: str, after: int | None = None, reached: bool = False) -> Iterator[Heard | Lost]:
    """Every event of these kinds from now on; rows of the journal also from the one behind ``after`` on.

    Raises what ``Client`` raises while the server was never reached (``reached`` says that it was before), and
    ``Unauthorised`` at any time.
    """
    while True:
        try:
            for heard in _listen(client, only, after):
                reached = True
                if heard.kind == "journal":
                    after = heard.data["id"]
                elif heard.kind == "hello":
                    # What comes while the next connection is made is then not missed.
                    after = heard.data["last_event"] if after is None else after
                yield heard
            reason = "it ended the connection"
        except (Unreachable, Refused) as error:
            if not reached or isinstance(error, Unauthorised):
                raise
            reason = error.message
        yield Lost(reason)
        time.sleep(_AGAIN_S)


def _listen(client: Client, only: tuple[str, ...], after: int | None) -> Iterator[Heard]:
    asked = {"only": ",".join(only)} | ({} if after is None else {"after": str(after)})
    lines = client.lines("GET", f"/admin/events?{urlencode(asked)}", silence_s=_SILENCE_S)
    with contextlib.closing(lines):  # type: ignore[type-var] # it is a generator
        kind, data = "", ""
        for line in lines:
            field, _, value = line.partition(":")
            if field == "event":
                kind = value.strip()
            elif field == "data":
                data += value.strip()
            elif not line and data:
                yield Heard(kind, json.loads(data))
                kind, data = "", ""
