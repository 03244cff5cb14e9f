"""Who may ask what, and from where: decisions only, the ``Gate`` asks them."""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from plimsoll.http.access.keys import Role

_PUBLIC = frozenset({"/", "/health", "/health/live", "/health/ready", "/openapi.json", "/favicon.ico"})
# What is no GET and needs no administrator. A route that nobody lists here is the administrator's.
_ASKING = frozenset(
    {
        *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"),
        *("/v1/messages", "/v1/messages/count_tokens"),
        *("/api/chat", "/api/generate", "/api/embed", "/api/embeddings"),
    }
)
_READING = frozenset({"/api/show"})
_SAFE = frozenset({"GET", "HEAD"})


def role_needed(method: str, path: str) -> Role | None:
    """The least role for a request; None where no key is needed."""
    if method in _SAFE:
        return None if path in _PUBLIC or path.startswith("/static/") else Role.READ
    path = path.rstrip("/")
    if path in _READING:
        return Role.READ
    return Role.USER if path in _ASKING else Role.ADMIN


def is_loopback(host: str) -> bool:
    """Whether that name or address can only mean this machine."""
    address = _address(host)
    if address is None:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback


def host_allowed(header: str, bound: Collection[str], names: Collection[str]) -> bool:
    """Whether a Host header names this server, so that no page's own domain may be pointed at it (DNS rebinding).

    ``bound`` are the host as configured and the address of the socket. An address can't be rebound: when all are
    listened on, any will do.
    """
    host = _host(header)
    if host is None:
        return False
    if is_loopback(host) or host in bound or host in names:
        return True
    everywhere = any((address := _address(one)) is not None and address.is_unspecified for one in bound)
    return everywhere and _address(host) is not None


def origin_allowed(origin: str | None, fetch_site: str, host: str, origins: Collection[str], *, visit: bool) -> bool:
    """Whether a browser may send this request: not for pages of other origins, unless they are listed.

    Programs that are no browsers send neither header. ``visit``: a page is opened, which no other page can read.
    """
    if origin is not None:
        return origin in origins or _same_origin(origin, host)
    return visit or fetch_site not in ("cross-site", "same-site")


def _same_origin(origin: str, host: str) -> bool:
    scheme, _, netloc = origin.partition("://")
    default = {"http": ":80", "https": ":443"}.get(scheme)
    # A proxy in front may have made https of it, so that only host and port are compared.
    return default is not None and netloc.lower().removesuffix(default) == host.lower().removesuffix(default)


def _host(header: str) -> str | None:
    """The host of ``host``, ``host:port`` or ``[address]:port``, in lower case."""
    if any(sign in header for sign in "/?#@\\ ,"):
        return None
    try:
        parts = urlsplit(f"//{header}")
        _ = parts.port  # raises when it is no number
    except ValueError:
        return None
    return parts.hostname.rstrip(".") if parts.hostname else None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
