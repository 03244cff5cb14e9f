"""A load on one core: streamed and whole chats over raw sockets, counted and timed without parsing every event."""

import asyncio
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any

_USAGE = re.compile(rb'"completion_tokens": ?(\d+)')
_PROMPT = re.compile(rb'"prompt_tokens": ?(\d+)')
_CACHED = re.compile(rb'"cached_tokens": ?(\d+)')
# Who waits longer counts as lost: a full listen queue lets a client try to connect for minutes.
_PATIENCE_S = 300.0
_TEXT = (b'"content":"', b'"content": "')
_CHUNKED = 0  # the length of an answer that does not tell it
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_EMPTY = (b'"content":""', b'"content": ""')


@dataclass(slots=True)
class Answer:
    """One request; times in seconds of ``perf_counter``.

    ``times`` has one entry per event with text, ``held`` one per comment that says that the answer waits for memory.
    """

    asked: float = 0.0
    times: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    ended: float = 0.0
    tokens: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    text: str = ""
    status: int = 0
    error: str = ""

    @property
    def first_s(self) -> float:
        return self.times[0] - self.asked

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]


class _Stream(asyncio.Protocol):
    def __init__(self, request: bytes, answer: Answer, *, timed: bool, texts: bool) -> None:
        self._request = request
        self._answer = answer
        self._timed = timed
        self._tail = b""
        self._all: list[bytes] | None = [] if texts else None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if not answer.status:
            answer.status = int(data[9:12])
        if self._timed or not answer.times:
            shown = sum(map(data.count, _TEXT)) - sum(map(data.count, _EMPTY))
            if shown > 0:
                answer.times += [time.perf_counter()] * shown
        answer.held += [time.perf_counter()] * data.count(b": waiting for memory")
        if self._all is not None:
            self._all.append(data)
        self._tail = (self._tail + data)[-2000:]
        if b"[DONE]" in data or (answer.status >= 400 and b"}" in data):
            self._finish()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self._answer.error = f"connection lost: {error}"
            self._finish()

    def _finish(self) -> None:
        answer = self._answer
        if self.done.done():
            return
        answer.ended = time.perf_counter()
        if counts := _USAGE.findall(self._tail):
            answer.tokens = int(counts[-1])
        if cached := _CACHED.findall(self._tail):
            answer.cached = int(cached[-1])
        if prompts := _PROMPT.findall(self._tail):
            answer.prompt_tokens = int(prompts[-1])
        if self._all is not None:
            answer.text = _text(b"".join(self._all))
        if answer.status >= 400:
            answer.error = self._tail.decode("utf-8", "replace")
        self._transport.close()
        self.done.set_result(None)


def _text(received: bytes) -> str:
    """What was said, from the events of one answer."""
    said = ""
    for line in received.decode("utf-8", "replace").splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:]).get("choices", []):
                said += choice.get("delta", {}).get("content") or ""
    return said


async def stream(
    host: str,
    port: int,
    body: dict[str, Any],
    *,
    timed: bool = True,
    texts: bool = False,
    answer: Answer | None = None,
    patience_s: float = _PATIENCE_S,
) -> Answer:
    """One streamed chat on a connection of its own; a given ``answer`` can be watched as it grows."""
    answer = answer or Answer()
    answer.asked = time.perf_counter()  # who waits for a connection waits for an answer
    whole = {**body, "stream": True, "stream_options": {"include_usage": True}}
    request = post(host, "/v1/chat/completions", whole, close=True)
    try:
        async with asyncio.timeout(patience_s):
            _, protocol = await asyncio.get_running_loop().create_connection(
                lambda: _Stream(request, answer, timed=timed, texts=texts), host, port
            )
            await protocol.done
    except (OSError, TimeoutError) as error:
        answer.error = str(error) or f"nothing after {patience_s:.0f} s"
    return answer


def post(host: str, path: str, body: dict[str, Any], *, close: bool = False) -> bytes:
    """The bytes of a POST request."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    return head.encode() + (b"Connection: close\r\n" if close else b"") + b"\r\n" + data


class KeepAlive(asyncio.Protocol):
    """One connection that sends ``request`` again as soon as it is answered, until told to stop."""

    def __init__(self, request: bytes, pause_s: float) -> None:
        self._request = request
        self._pause_s = pause_s
        self._buffer = b""
        self._length = -1
        self._sent = 0.0
        self.stopping = False
        self.latencies: list[float] = []
        self.failures = 0
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        if self.stopping:
            self._transport.close()
            return
        self._buffer, self._length = b"", -1
        self._sent = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._length < 0:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            found = re.search(rb"content-length: *(\d+)", self._buffer[:end], re.IGNORECASE)
            self._length = end + 4 + int(found[1]) if found else _CHUNKED
        if len(self._buffer) < self._length or (self._length == _CHUNKED and not self._buffer.endswith(_LAST_CHUNK)):
            return
        self.latencies.append(time.perf_counter() - self._sent)
        self.failures += not self._buffer.startswith(b"HTTP/1.1 200")
        if self.stopping:
            self._transport.close()
        elif self._pause_s:
            asyncio.get_running_loop().call_later(self._pause_s, self._send)
        else:
            self._send()

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.stopping:
            self.failures += 1
        if not self.closed.done():
            self.closed.set_result(None)


async def repeat(
    host: str, port: int, request: bytes, connections: int, seconds: float, *, pause_s: float = 0.0
) -> tuple[list[float], int]:
    """Keep ``connections`` busy for that long: the latencies in seconds and how many requests failed."""
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(lambda: KeepAlive(request, pause_s), host, port) for _ in range(connections)]
    await asyncio.sleep(seconds)
    for _, protocol in made:
        protocol.stopping = True
    await asyncio.gather(*(protocol.closed for _, protocol in made))
    return [one for _, p in made for one in p.latencies], sum(p.failures for _, p in made)


def get(host: str, path: str) -> bytes:
    """The bytes of a GET request."""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def percentile(values: list[float], share: float) -> float:
    """The value below which ``share`` (0 to 1) of ``values`` lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
