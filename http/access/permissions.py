"""Who may ask what: API keys and their roles, and which hosts and origins are let in."""

import enum
import functools
import hashlib
import hmac
import ipaddress
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from plimsoll.config import ApiKey
from plimsoll.errors import ConfigError
from plimsoll.units import check_secret


class Role(enum.IntEnum):
    """What a key may do. Each role may do what the roles below it may."""

    READ = 1
    USER = 2
    ADMIN = 3


class Caller(msgspec.Struct, frozen=True):
    """The key that a request came with. ``name`` is empty where no keys are configured."""

    name: str
    role: Role


EVERYBODY = Caller("", Role.ADMIN)
# Keys that were read from environment variables, which are removed then, for the next reading of the configuration.
_taken: dict[str, str] = {}
_PUBLIC = frozenset(
    {
        *("/", "/health", "/health/live", "/health/ready", "/openapi.json", "/favicon.ico"),
        *("/v1", "/v1/messages", "/api"),  # clients look here whether a server is there
    }
)
# Requests other than GET and HEAD need the role admin unless their path is listed here.
_ASKING = frozenset(
    {
        *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"),
        *("/v1/rerank", "/v2/rerank", "/rerank"),
        *("/v1/messages", "/v1/messages/count_tokens", "/v1/conversations"),
        *("/api/chat", "/api/generate", "/api/embed", "/api/embeddings"),
    }
)
# What is below these belongs to the key that made it.
_OWN = ("/v1/responses/", "/v1/conversations/")
_READING = frozenset({"/api/show"})
_SAFE = frozenset({"GET", "HEAD"})
# A model's settings hold what its owner tells it before every conversation; a search asks a server elsewhere.
_ADMINS = frozenset({"/admin/settings", "/admin/search"})


class Keys:
    """The keys, of which only digests are kept."""

    def __init__(self, keys: Sequence[tuple[Caller, str]]) -> None:
        self._digests = [(caller, _digest(key)) for caller, key in keys]

    def __len__(self) -> int:
        return len(self._digests)

    def find(self, presented: str) -> Caller | None:
        """The caller whose key ``presented`` is, or None. Takes the same time in all cases."""
        digest, found = _digest(presented), None
        for caller, mine in self._digests:
            if hmac.compare_digest(mine, digest):
                found = caller
        return found


def read_keys(entries: Sequence[ApiKey]) -> Keys:
    """The keys of ``access.keys``, those of variables and files included. Raises ``ConfigError``."""
    keys: list[tuple[Caller, str]] = []
    for index, entry in enumerate(entries):
        where, key = _read(entry, f"access.keys[{index}]")
        try:
            check_secret(key)
        except ValueError as error:
            raise ConfigError(f"{where}: {str(error).replace('Expected', 'the key must have')}", param=where) from None
        if twin := next((caller.name for caller, other in keys if other == key), None):
            raise ConfigError(f"{where}: this is the same key as that of {twin!r}", param=where)
        keys.append((Caller(entry.name, Role[entry.role.upper()]), key))
    return Keys(keys)


def presented_keys(authorization: str, x_api_key: str) -> list[str]:
    """The keys in a request's two headers; an Authorization that is no Bearer holds none."""
    scheme, _, token = authorization.partition(" ")
    found = [token.strip()] if scheme.lower() == "bearer" else []
    return [key for key in (*found, x_api_key.strip()) if key]


def _read(entry: ApiKey, where: str) -> tuple[str, str]:
    if entry.key is not None:
        return f"{where}.key", entry.key.reveal()
    if entry.env is not None:
        where = f"{where}.env"
        if not (text := _out_of_environment(entry.env)):
            raise ConfigError(f"{where}: the environment variable {entry.env} is not set", param=where)
        return where, text
    where, path = f"{where}.file", Path(str(entry.file)).expanduser()
    try:
        return where, path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{where}: {path} can't be read: {error.strerror}", param=where) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: {path} is not text", param=where) from None


def _out_of_environment(name: str) -> str:
    """Take a key out of the environment, so that processes that start later (workers, downloads) do not inherit it."""
    if name in os.environ:
        _taken[name] = os.environ.pop(name)
    return _taken.get(name, "").strip()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def role_needed(method: str, path: str) -> Role | None:
    """The least role for a request; None where no key is needed."""
    if method in _SAFE and path.rstrip("/") not in _ADMINS:
        return None if (path.rstrip("/") or "/") in _PUBLIC or path.startswith("/static/") else Role.READ
    path = path.rstrip("/")
    if path in _READING:
        return Role.READ
    return Role.USER if path in _ASKING or path.startswith(_OWN) else Role.ADMIN


def is_loopback(host: str) -> bool:
    """Whether the name or address ``host`` can only mean this machine."""
    address = _address(host)
    if address is None:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback


# Nearly all requests have one of a few Host headers, and parsing one costs as much as reading a short request.
@functools.lru_cache(256)
def host_allowed(header: str, bound: frozenset[str], names: frozenset[str]) -> bool:
    """Whether a Host header names this server. Other names are refused, because a page may point its own domain here.

    That attack is DNS rebinding. ``bound`` are the configured host and the address of the socket. An address can't be
    rebound, so a server that listens on all addresses accepts any address.
    """
    host = _host(header)
    if host is None:
        return False
    if is_loopback(host) or host in bound or host in names:
        return True
    everywhere = any((address := _address(one)) is not None and address.is_unspecified for one in bound)
    return everywhere and _address(host) is not None


def origin_allowed(origin: str | None, fetch_site: str, host: str, origins: Collection[str], *, visit: bool) -> bool:
    """Whether this server answers a browser's request: not for pages of other origins, unless they are listed.

    Programs that are no browsers send neither header. ``visit``: the browser opens a page of this server, whose content
    no other page can read.
    """
    if origin is not None:
        return origin in origins or _same_origin(origin, host)
    return visit or fetch_site not in ("cross-site", "same-site")


def _same_origin(origin: str, host: str) -> bool:
    scheme, _, netloc = origin.partition("://")
    default = {"http": ":80", "https": ":443"}.get(scheme)
    # A proxy may have turned https into http, so only host and port are compared.
    return default is not None and netloc.lower().removesuffix(default) == host.lower().removesuffix(default)


def _host(header: str) -> str | None:
    """The host of ``host``, ``host:port`` or ``[address]:port``, in lower case."""
    if any(sign in header for sign in "/?#@\\ ,"):
        return None
    try:
        parts = urlsplit(f"//{header}")
        _ = parts.port  # raises for a port that is no number
    except ValueError:
        return None
    return parts.hostname.rstrip(".") if parts.hostname else None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
