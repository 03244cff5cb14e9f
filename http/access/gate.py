"""The gate: every request passes it before it is routed and before its body is read."""

import time
from collections.abc import Callable

import msgspec
from sanic import HTTPResponse
from sanic.response import BaseHTTPResponse

from plimsoll.config import Config
from plimsoll.errors import BadRequest, ConfigError, Forbidden, HeadersTooLarge, TooManyRequests, Unauthorized
from plimsoll.http.access.permissions import (
    EVERYBODY,
    Caller,
    Keys,
    host_allowed,
    is_loopback,
    origin_allowed,
    presented_keys,
    read_keys,
    role_needed,
)
from plimsoll.http.limits.body_budget import HttpRequest

_PREFLIGHT_S = "600"


class Gate:
    """Lets a request in, with its caller at ``request.ctx.caller``, or raises the error that refuses it."""

    def __init__(self, config: Config, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}
        self._address = config.server.host
        self._bound = frozenset({config.server.host.lower()})
        self.use(config, read_keys(config.access.keys))

    def use(self, config: Config, keys: Keys) -> None:
        """Use these keys, and the names, origins and limits of ``config``, from now on."""
        self._limits = config.limits
        self._keys = keys
        self._names = frozenset(name.lower() for name in config.access.hosts)
        self._origins = frozenset(config.access.origins)

    def bound_to(self, address: str) -> None:
        """Accept the socket's own address as a Host, too."""
        self._address = address
        self._bound |= {address}

    def refuse_opening(self, keys: Keys) -> None:
        """Raise ``ConfigError`` if with ``keys`` anybody on the network could use a server that had keys so far."""
        if self._keys and is_open(keys, self._address):
            raise ConfigError(
                f"access.keys: the last key can't be taken away while the server listens on {self._address}; stop it"
                " and start it with --insecure if that is meant",
                param="access.keys",
            )

    def admit(self, request: HttpRequest) -> HTTPResponse | None:
        """None for a request that may go on; for a browser's preflight request, its answer.

        Raises:
            BadRequest: more than one Host.
            Forbidden: a foreign Host or Origin, or a key whose role is too low.
            HeadersTooLarge: too many headers.
            TooManyRequests: the key's rate is used up.
            Unauthorized: no key, or a key that this server does not have.

        """
        request.ctx.caller = None
        if len(request.headers) > self._limits.headers:
            text = (
                f"the request has {len(request.headers)} headers; {self._limits.headers} are allowed (limits.headers)"
            )
            raise HeadersTooLarge(text)
        self._check_browser(request)
        if request.method == "OPTIONS" and "access-control-request-method" in request.headers:
            return HTTPResponse(status=204, headers=_preflight(request))
        request.ctx.caller = caller = self._caller(request)
        needed = role_needed(request.method, request.path)
        if needed is None:
            return None
        if caller is None:
            raise _unauthorized(request)
        if caller.role < needed:
            role, least = caller.role.name.lower(), needed.name.lower()
            text = f"the key {caller.name!r} has the role {role}; {request.method} {request.path} needs {least}"
            raise Forbidden(text)
        if caller.name:
            self._check_rate(caller.name)
        return None

    def mark_origin(self, request: HttpRequest, response: BaseHTTPResponse) -> None:
        """Response middleware: let a page of a listed origin read the answer."""
        if not self._origins:
            return
        response.headers.add("Vary", "Origin")
        origin = request.headers.get("origin")
        if origin in self._origins:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = "Retry-After"

    def _check_browser(self, request: HttpRequest) -> None:
        hosts = request.headers.getall("host", [])
        if len(hosts) > 1:
            raise BadRequest("the request has more than one Host header")
        host = hosts[0] if hosts else ""
        # A request without a Host comes from no browser.
        if host and not host_allowed(host, self._bound, self._names):
            raise Forbidden(f"this server is not called {host[:100]!r}; if it is meant to be, add that to access.hosts")
        headers = request.headers
        origin, mode, aim = (headers.get(name) for name in ("origin", "sec-fetch-mode", "sec-fetch-dest"))
        visit = request.method == "GET" and (mode, aim) == ("navigate", "document")
        if not origin_allowed(origin, headers.get("sec-fetch-site", ""), host, self._origins, visit=visit):
            where = f"of {origin[:100]!r}" if origin else "of another site"
            can = "if it is meant to, add it to access.origins"
            if origin == "null" or (origin or "").startswith("file:"):
                can = "a page out of a file has no origin that access.origins could list: serve it over http"
            raise Forbidden(f"a web page {where} may not use this server; {can}")

    def _check_rate(self, name: str) -> None:
        per_minute = self._limits.requests_per_minute
        if per_minute is None:
            return
        bucket, wait_s = take(self._buckets.get(name), self._clock(), per_minute=per_minute, burst=self._limits.burst)
        self._buckets[name] = bucket
        if wait_s:
            text = f"the key {name!r} may make {per_minute:g} requests per minute; try again in {wait_s:.1f} s"
            raise TooManyRequests(text, retry_after_s=wait_s)

    def _caller(self, request: HttpRequest) -> Caller | None:
        if not self._keys:
            return EVERYBODY
        callers = (self._keys.find(key) for key in _keys_of(request))
        return next((caller for caller in callers if caller is not None), None)


class Bucket(msgspec.Struct, frozen=True):
    """A token bucket: at the time ``at_s`` a key could make ``tokens`` requests."""

    tokens: float
    at_s: float


def take(bucket: Bucket | None, now_s: float, *, per_minute: float, burst: int) -> tuple[Bucket, float]:
    """The bucket after one more request, and the seconds until a request is possible: 0 if this one is."""
    per_s = per_minute / 60
    tokens = float(burst)
    if bucket is not None:
        tokens = min(tokens, bucket.tokens + max(0.0, now_s - bucket.at_s) * per_s)
    if tokens >= 1:
        return Bucket(tokens - 1, now_s), 0.0
    return Bucket(tokens, now_s), (1 - tokens) / per_s


def is_open(keys: Keys, address: str) -> bool:
    """Whether anybody on the network could use a server with ``keys`` on ``address``."""
    return not keys and not is_loopback(address)


def _keys_of(request: HttpRequest) -> list[str]:
    return presented_keys(request.headers.get("authorization", ""), request.headers.get("x-api-key", ""))


def _unauthorized(request: HttpRequest) -> Unauthorized:
    if _keys_of(request):
        return Unauthorized("the API key is none of this server's; see access.keys in its configuration")
    return Unauthorized("an API key is needed: send it as Authorization: Bearer KEY or x-api-key: KEY")


def _preflight(request: HttpRequest) -> dict[str, str]:
    # A listed origin may send any header: a list of all clients' own headers would never be complete.
    headers = {
        "Access-Control-Allow-Methods": "GET, HEAD, POST, DELETE",
        "Access-Control-Allow-Headers": request.headers.get("access-control-request-headers", ""),
        "Access-Control-Max-Age": _PREFLIGHT_S,
    }
    if request.headers.get("access-control-request-private-network") == "true":
        headers["Access-Control-Allow-Private-Network"] = "true"
    return headers
