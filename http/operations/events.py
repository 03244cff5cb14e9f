"""``GET /admin/events``: the live feed as server-sent events, with what a listener missed."""

import asyncio
from typing import Any

from plimsoll.errors import BadRequest, PlimsollError
from plimsoll.http.front import AnyRequest, App, Front
from plimsoll.http.operations.feed import KINDS, Feed, Listener
from plimsoll.http.operations.feed_frames import entry_frame, hello_frame
from plimsoll.http.sse import EVENT_STREAM, HEADERS
from plimsoll.journal import read
from plimsoll.journal.events import Entry
from plimsoll.journal.journal import Journal

# One that was away for long gets the newest of what it missed; GET /admin/history has the rest.
_MOST_MISSED = 1000


def add_routes(app: App, front: Front) -> None:
    """Register this module's endpoint, and the end of its streams when the server stops."""
    feed = Feed(front)
    api = _Events(front, feed)
    app.ctx.feed = feed
    app.add_route(api.events, "/admin/events", methods=["GET"], name="admin_events")

    async def end(_app: App) -> None:
        feed.close()

    app.register_listener(end, "before_server_stop")


class _Events:
    def __init__(self, front: Front, feed: Feed) -> None:
        self._front = front
        self._feed = feed
        self._journal = front.system.journal
        self._keepalive_s = front.config.server.keepalive

    async def events(self, request: AnyRequest) -> None:
        kinds, after = _kinds(request), _after(request)
        transport: Any = request.transport
        listener = self._feed.listen(kinds, transport.abort)
        sent = 0
        try:
            response = await request.respond(headers=HEADERS, content_type=EVENT_STREAM)
            await response.send(hello_frame(self._front))
            if "journal" in kinds and after is not None:
                for entry in await asyncio.to_thread(missed, self._journal, after):
                    sent = entry.id
                    await response.send(entry_frame(entry, self._journal.language))
            while (data := await self._next(listener, sent)) is not None:
                await response.send(data)
            await response.send(end_stream=True)
        finally:
            self._feed.leave(listener)

    async def _next(self, listener: Listener, sent: int) -> bytes | None:
        """What comes next, a comment after silence, None at the end. Events up to ``sent`` were sent before."""
        batch = await listener.next_batch(self._keepalive_s)
        if None in batch:
            return None
        return b"".join(data for number, data in filter(None, batch) if not 0 < number <= sent) or b": \n\n"


def missed(journal: Journal, after: int) -> list[Entry]:
    """The newest 1000 events with ids above ``after``, oldest first; reads the black box for what is older."""
    recent = journal.recent()
    entries = [entry for entry in recent if entry.id > after]
    if journal.blackbox and len(entries) == len(recent):
        # What left the memory was written long ago; what is in both comes from memory.
        first = recent[0].id if recent else None
        try:
            older = read.events_after(journal.blackbox.path, after, _MOST_MISSED)
        except PlimsollError:
            older = []
        entries = [entry for entry in older if first is None or entry.id < first] + entries
    return entries[-_MOST_MISSED:]


def _kinds(request: AnyRequest) -> frozenset[str]:
    asked = request.args.get("only")
    if asked is None:
        return frozenset(KINDS)
    kinds = {one.strip() for one in asked.split(",")} - {"", "hello"}
    if unknown := sorted(kinds.difference(KINDS)):
        raise BadRequest(f"only: {unknown[0][:60]!r} is no kind; there are {', '.join(KINDS)}", param="only")
    return frozenset(kinds)


def _after(request: AnyRequest) -> int | None:
    """The header counts more than the address, which a client that connects again keeps as it was."""
    for name, text in (("Last-Event-ID", request.headers.get("last-event-id")), ("after", request.args.get("after"))):
        if text:
            if not (text.isascii() and text.isdecimal() and len(text) <= 18):
                raise BadRequest(f"{name} is {text[:60]!r}, but must be the id of an event: a whole number", param=name)
            return int(text)
    return None
