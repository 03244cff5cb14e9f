"""``GET /admin/events``: the live feed as server-sent events, with the events that a client missed."""

from typing import Any

from sanic import HTTPResponse

from plimsoll.errors import BadRequest, PlimsollError, Unavailable
from plimsoll.http.app_state import App, AppState
from plimsoll.http.endpoint import EVENT_STREAM, NO_BUFFERING
from plimsoll.http.limits.body_budget import HttpRequest
from plimsoll.http.operations.feed import KINDS, Feed, Listener, entry_frame, hello_frame
from plimsoll.http.operations.history import asked_language, read_journal
from plimsoll.journal import read
from plimsoll.journal.events import Entry
from plimsoll.journal.journal import Journal

# A client that was away for long gets the newest events that it missed; GET /admin/history has the rest.
_MOST_MISSED = 1000


def add_routes(app: App, state: AppState) -> None:
    """Register this module's endpoint, and the end of its streams when the server stops."""
    feed = Feed(state)
    api = _Events(state, feed)
    app.ctx.feed = feed
    app.add_route(api.events, "/admin/events", methods=["GET"], name="admin_events")
    app.add_route(_would_stream, "/admin/events", methods=["HEAD"], name="admin_events_head")

    async def end(_app: App) -> None:
        feed.close()

    app.register_listener(end, "before_server_stop")


async def _would_stream(_request: HttpRequest) -> HTTPResponse:
    return HTTPResponse(headers=NO_BUFFERING, content_type=EVENT_STREAM)


class _Events:
    def __init__(self, state: AppState, feed: Feed) -> None:
        self._state = state
        self._feed = feed
        self._journal = state.system.journal
        self._keepalive_s = state.config.server.keepalive

    async def events(self, request: HttpRequest) -> None:
        kinds, after, language = _kinds(request), _after(request), asked_language(request)
        transport: Any = request.transport
        listener = self._feed.listen(kinds, transport.abort, language)
        sent = 0
        try:
            response = await request.respond(headers=NO_BUFFERING, content_type=EVENT_STREAM)
            await response.send(hello_frame(self._state))
            if "journal" in kinds and after is not None:
                for entry in await self._missed(after):
                    sent = entry.id
                    await response.send(entry_frame(entry, language or self._journal.language))
            while (data := await self._next(listener, sent)) is not None:
                await response.send(data)
            await response.send(end_stream=True)
        finally:
            self._feed.leave(listener)

    async def _missed(self, after: int) -> list[Entry]:
        try:
            return await read_journal(self._journal, lambda: missed(self._journal, after))
        except Unavailable:  # the disk of the black box does not answer: send the events that are in memory
            return [entry for entry in self._journal.recent() if entry.id > after]

    async def _next(self, listener: Listener, sent: int) -> bytes | None:
        """The next bytes: a comment after silence, None at the end. Events up to the id ``sent`` are left out."""
        batch = await listener.next_batch(self._keepalive_s)
        if None in batch:
            return None
        return b"".join(data for number, data in filter(None, batch) if not 0 < number <= sent) or b": \n\n"


def missed(journal: Journal, after: int) -> list[Entry]:
    """The newest 1000 events with ids above ``after``, oldest first; reads the black box for what is older."""
    recent = journal.recent()
    entries = [entry for entry in recent if entry.id > after]
    if journal.blackbox and len(entries) == len(recent):
        # Events that are no longer in memory were written long ago. Those in both places are taken from memory.
        first = recent[0].id if recent else None
        try:
            older = read.events_after(journal.blackbox.path, after, _MOST_MISSED)
        except PlimsollError:
            older = []
        entries = [entry for entry in older if first is None or entry.id < first] + entries
    return entries[-_MOST_MISSED:]


def _kinds(request: HttpRequest) -> frozenset[str]:
    asked = request.args.get("only")
    if asked is None:
        return frozenset(KINDS)
    kinds = {one.strip() for one in asked.split(",")} - {"", "hello"}
    if unknown := sorted(kinds.difference(KINDS)):
        raise BadRequest(f"only: {unknown[0][:60]!r} is no kind; there are {', '.join(KINDS)}", param="only")
    return frozenset(kinds)


def _after(request: HttpRequest) -> int | None:
    """The header comes before the query, because a client that reconnects keeps the query of its first request."""
    for name, text in (("Last-Event-ID", request.headers.get("last-event-id")), ("after", request.args.get("after"))):
        if text:
            if not (text.isascii() and text.isdecimal() and len(text) <= 18):
                raise BadRequest(f"{name} is {text[:60]!r}, but must be the id of an event: a whole number", param=name)
            return int(text)
    return None
