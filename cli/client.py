"""The command line's HTTP client: the standard library's, so that a chat starts without a wait."""

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


class Text(str):
    """A piece of an answer."""

    __slots__ = ()


class Note(str):
    """What the server says while there is no answer yet."""

    __slots__ = ()


class Client:
    """One server at ``url``; every call is a connection of its own."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise Unreachable(f"{url!r} is not a URL like http://127.0.0.1:11435")
        self.url = url
        self._secure = parts.scheme == "https"
        self._host = parts.hostname
        self._port = port
        self._prefix = parts.path.rstrip("/")

    def get(self, path: str) -> Any:
        """The JSON at ``path``. Raises ``Unreachable`` or ``Refused``."""
        with self._response("GET", path, None) as response:
            return json.loads(response.read())

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """What ``path`` answers to ``body``. Raises ``Unreachable`` or ``Refused``."""
        with self._response("POST", path, json.dumps(body)) as response:
            return json.loads(response.read())

    def chat(self, model: str, messages: list[dict[str, str]], temperature: float) -> Iterator[Text | Note]:
        """The answer as it comes. Closing the iterator stops it. Raises ``Unreachable`` or ``Refused``."""
        body = json.dumps({"model": model, "messages": messages, "temperature": temperature, "stream": True})
        with self._response("POST", "/v1/chat/completions", body) as response:
            ended = False
            for line in response:
                text = line.decode("utf-8", "replace").strip()
                if text.startswith(":"):
                    yield Note(text[1:].strip())
                elif text == "data: [DONE]":
                    ended = True
                elif text.startswith("data: "):
                    yield from _texts(json.loads(text.removeprefix("data: ")))
            if not ended:
                raise Unreachable(f"the server at {self.url} broke off in mid-answer")

    @contextlib.contextmanager
    def _response(self, method: str, path: str, body: str | None) -> Iterator[http.client.HTTPResponse]:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=_CONNECT_TIMEOUT_S)
        try:
            connection.connect()
            connection.sock.settimeout(_SILENCE_TIMEOUT_S)
            headers = {"Content-Type": "application/json"} if body else {}
            connection.request(method, self._prefix + path, body.encode() if body else None, headers)
            response = connection.getresponse()
            # /health answers 503 with a body of its own, but nothing here asks for it.
            if response.status >= 400:
                raise Refused(_message(response))
            yield response
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            text = f"no Plimsoll server answers at {self.url} ({reason}); start one with: plimsoll serve"
            raise Unreachable(text) from None
        finally:
            connection.close()


def _texts(event: dict[str, Any]) -> Iterator[Text]:
    if error := event.get("error"):
        raise Refused(error["message"])
    for choice in event["choices"]:
        if text := choice["delta"].get("content"):
            yield Text(text)


def _message(response: http.client.HTTPResponse) -> str:
    raw = response.read()
    try:
        return str(json.loads(raw)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return f"the server answered {response.status} {response.reason}"
