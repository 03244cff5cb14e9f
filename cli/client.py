"""The command line's HTTP client: the standard library's, so that a command starts without a wait."""

import contextlib
import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from plimsoll.errors import PlimsollError

_CONNECT_TIMEOUT_S = 5.0
# A streaming server is never silent for longer than its keep-alive interval.
_SILENCE_TIMEOUT_S = 300.0


class Unreachable(PlimsollError):
    """Nobody answers at the URL."""

    code = "unreachable"


class Refused(PlimsollError):
    """The server answered with an error."""

    code = "refused"


class Unauthorised(Refused):
    """It answered 401 or 403: no key, a wrong one, or one that may not do this."""

    code = "unauthorised"


class Text(str):
    """A piece of an answer."""

    __slots__ = ()


class Note(str):
    """What the server says while there is no answer yet."""

    __slots__ = ()


class Client:
    """One server at ``url``; every call is a connection of its own. ``key`` is sent as ``Authorization: Bearer``.

    Every method raises ``Unreachable``, ``Unauthorised`` or ``Refused``.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise Unreachable(f"{url!r} is not a URL like http://127.0.0.1:11435")
        self.url = url
        self.key = key
        self.host = parts.hostname
        self._secure = parts.scheme == "https"
        self._port = port
        self._prefix = parts.path.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def get(self, path: str, *, timeout_s: float = _SILENCE_TIMEOUT_S) -> Any:
        """The JSON at ``path``."""
        with self._response("GET", path, None, timeout_s) as response:
            return json.loads(response.read())

    def post(self, path: str, body: dict[str, Any], *, timeout_s: float | None = _SILENCE_TIMEOUT_S) -> Any:
        """What ``path`` answers to ``body``; ``timeout_s`` None waits for as long as it takes."""
        with self._response("POST", path, json.dumps(body), timeout_s) as response:
            return json.loads(response.read())

    def lines(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, silence_s: float = _SILENCE_TIMEOUT_S
    ) -> Iterator[str]:
        """The lines of a stream as they come. Closing the iterator ends it."""
        with self._response(method, path, None if body is None else json.dumps(body), silence_s) as response:
            for line in response:
                yield line.decode("utf-8", "replace").strip()

    def chat(self, model: str, messages: list[dict[str, str]], temperature: float) -> Iterator[Text | Note]:
        """The answer as it comes. Closing the iterator stops it."""
        body = {"model": model, "messages": messages, "temperature": temperature, "stream": True}
        for chunk in self.chunks(body):
            if isinstance(chunk, Note):
                yield chunk
                continue
            for choice in chunk["choices"]:
                if text := choice["delta"].get("content"):
                    yield Text(text)

    def chunks(self, body: dict[str, Any]) -> Iterator[dict[str, Any] | Note]:
        """The chunks of a streamed chat completion, and what the server says while there are none."""
        lines = self.lines("POST", "/v1/chat/completions", body)
        with contextlib.closing(lines):  # type: ignore[type-var] # it is a generator
            for line in lines:
                if line.startswith(":"):
                    yield Note(line[1:].strip())
                elif line == "data: [DONE]":
                    return
                elif line.startswith("data: "):
                    chunk = json.loads(line.removeprefix("data: "))
                    if error := chunk.get("error"):
                        raise Refused(error["message"])
                    yield chunk
        raise Unreachable(f"the server at {self.url} broke off in mid-answer")

    @contextlib.contextmanager
    def _response(
        self, method: str, path: str, body: str | None, timeout_s: float | None
    ) -> Iterator[http.client.HTTPResponse]:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        first_s = _CONNECT_TIMEOUT_S if timeout_s is None else min(_CONNECT_TIMEOUT_S, timeout_s)
        connection = kind(self.host, self._port, timeout=first_s)
        try:
            connection.connect()
            connection.sock.settimeout(timeout_s)
            headers = self._headers | ({"Content-Type": "application/json"} if body else {})
            connection.request(method, self._prefix + path, body.encode() if body else None, headers)
            response = connection.getresponse()
            # /health answers 503 with a body of its own.
            if response.status >= 400 and not (response.status == 503 and path.startswith("/health")):
                raise _refusal(response)
            yield response
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            text = f"no Plimsoll server answers at {self.url} ({reason}); start one with: plimsoll serve"
            raise Unreachable(text) from None
        finally:
            connection.close()


def _refusal(response: http.client.HTTPResponse) -> Refused:
    raw = response.read()
    text = f"the server answered {response.status} {response.reason}"
    with contextlib.suppress(ValueError, LookupError, TypeError):
        error = json.loads(raw)["error"]
        text = str(error if isinstance(error, str) else error["message"])
    if response.status == 401:
        return Unauthorised(f"{text.rstrip('.')}; give a key with --api-key-file FILE or $PLIMSOLL_API_KEY")
    return Unauthorised(text) if response.status == 403 else Refused(text)
