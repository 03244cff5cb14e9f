"""The newest responses and conversations, kept so that a client need not send earlier messages again."""

import asyncio
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import msgspec

from plimsoll.errors import UnknownModel
from plimsoll.http.response_folder import Entry, FolderTaken, ResponseFolder

_log = logging.getLogger("plimsoll.http")
_MOST = 4096
# How long the server's start waits for the folder.
_READ_S = 3.0


class UnknownResponse(UnknownModel):
    """No response, conversation or item of that id is kept for this key."""

    code = "not_found"


class ResponseStore:
    """At most ``limit_bytes`` of JSON, of which those that were used last stay; 0 keeps nothing.

    Each entry belongs to the key that made it: others do not see it. All is in memory, and in ``folder`` if there is
    one. Items are those of ``http/openai/responses/input.py``.
    """

    def __init__(self, limit_bytes: int, folder: ResponseFolder | None = None) -> None:
        self._limit_bytes = limit_bytes
        self._folder = folder if limit_bytes else None
        self._kept: OrderedDict[str, tuple[Entry, int]] = OrderedDict()
        self._held_bytes = 0

    @property
    def is_on(self) -> bool:
        return self._limit_bytes > 0

    async def open(self) -> None:
        """Take over what an earlier server has left in the folder, if the disk answers."""
        if self._folder is None:
            return
        reading = asyncio.wrap_future(self._folder.read(_MOST, self._limit_bytes))
        try:
            found = await asyncio.wait_for(reading, _READ_S)
        except FolderTaken as error:
            text = "responses are kept in memory alone: %s; give one of the two another server.responses_folder"
            _log.warning(text, error)
            return
        except (OSError, TimeoutError) as error:
            _log.warning("responses of earlier servers are not known: %s", error or "their disk does not answer")
            return
        for entry, size in found:
            self._add(entry, size)

    def close(self) -> None:
        """Leave the folder to the next server."""
        if self._folder:
            self._folder.close()

    def put(self, name: str, owner: str, items: Sequence[Any], body: Any) -> None:
        """Keep an entry, and drop the oldest ones to make room. An entry larger than the store is not kept."""
        encode = msgspec.json.encode
        ids = tuple(item.id for item in items if item.id)
        entry = Entry(name, owner, msgspec.Raw(encode(items)), msgspec.Raw(encode(body)), ids)
        data = encode(entry)
        if len(data) > self._limit_bytes:
            self.drop(name, owner)
            return
        self._add(entry, len(data))
        if self._folder:
            self._folder.write(name, data)

    def get(self, name: str, owner: str, param: str | None = None) -> Entry:
        """The entry of that id. Raises ``UnknownResponse`` if it is not kept, or belongs to another key."""
        found, _ = self._kept.get(name, (None, 0))
        if found is None or found.owner != owner:
            kept = (
                f"the newest {self._limit_bytes} bytes are kept (limits.stored_responses in the configuration)"
                if self.is_on
                else "nothing is stored here (limits.stored_responses in the configuration is 0)"
            )
            text = f"{name[:100]!r} is not known here: {kept}. Send the whole conversation as input."
            raise UnknownResponse(text, param=param)
        self._kept.move_to_end(name)
        return found

    def drop(self, name: str, owner: str) -> bool:
        """Drop the entry of that id; False if none is kept for this owner."""
        found, _ = self._kept.get(name, (None, 0))
        if found is None or found.owner != owner:
            return False
        self._forget(name)
        return True

    def with_item(self, item_id: str, owner: str) -> Entry | None:
        """The newest entry of this owner that has an item of that id."""
        of_owner = (entry for entry, _ in reversed(self._kept.values()) if entry.owner == owner)
        return next((entry for entry in of_owner if item_id in entry.ids), None)

    def begin_conversation(self, owner: str, items: Sequence[Any], metadata: dict[str, str]) -> dict[str, Any]:
        """A new conversation with these items; its body."""
        name = f"conv_{uuid.uuid4().hex}"
        body = {"id": name, "object": "conversation", "created_at": int(time.time()), "metadata": metadata}
        self.put(name, owner, items, body)
        return body

    def _add(self, entry: Entry, size: int) -> None:
        _, before = self._kept.pop(entry.name, (None, 0))
        self._kept[entry.name] = (entry, size)
        self._held_bytes += size - before
        while self._held_bytes > self._limit_bytes or len(self._kept) > _MOST:
            self._forget(next(iter(self._kept)))

    def _forget(self, name: str) -> None:
        _, size = self._kept.pop(name)
        self._held_bytes -= size
        if self._folder:
            self._folder.remove(name)
