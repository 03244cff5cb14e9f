"""The page at ``/`` and its files, which are read once at the start and sent from memory."""

import hashlib
from importlib import resources
from importlib.resources.abc import Traversable

import msgspec
from sanic import HTTPResponse
from sanic.exceptions import NotFound
from sanic.response import raw, text

from plimsoll.http.app_state import App, AppState
from plimsoll.http.limits.body_budget import HttpRequest

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
# uPlot sets styles through the DOM, which this policy allows.
_POLICY = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Browsers keep the files but ask each time whether they have changed: no old script meets an updated server.
    "Cache-Control": "no-cache",
}


class File(msgspec.Struct, frozen=True):
    """One file of the page, ready to be sent."""

    data: bytes
    content_type: str
    etag: str


def add_routes(app: App, _state: AppState) -> None:
    """Register this module's endpoints."""
    page = _Page(load())
    app.add_route(page.root, "/", methods=["GET", "HEAD"], name="page")
    app.add_route(page.file, "/static/<path:path>", methods=["GET", "HEAD"], name="page_file")


def load() -> dict[str, File]:
    """The page's files by their path below ``/static/``."""
    return dict(_files(resources.files("plimsoll") / "http" / "static", ""))


def _files(folder: Traversable, prefix: str) -> list[tuple[str, File]]:
    found: list[tuple[str, File]] = []
    for one in folder.iterdir():
        path = f"{prefix}{one.name}"
        if one.is_dir():
            found += _files(one, f"{path}/")
        elif content_type := _TYPES.get(path[path.rfind(".") :]):
            data = one.read_bytes()
            found.append((path, File(data, content_type, f'"{hashlib.sha256(data).hexdigest()[:16]}"')))
    return found


class _Page:
    def __init__(self, files: dict[str, File]) -> None:
        self._files = files

    async def root(self, request: HttpRequest) -> HTTPResponse:
        """The page for browsers; Ollama's clients look here whether a server runs, and get Ollama's text."""
        vary = {"Vary": "Accept, User-Agent"}
        is_ollama = request.headers.get("user-agent", "").lower().startswith("ollama")
        if is_ollama or "text/html" not in request.headers.get("accept", ""):
            return text("Ollama is running", headers=vary)
        return _send(request, self._files["index.html"], vary)

    async def file(self, request: HttpRequest, path: str) -> HTTPResponse:
        if path not in self._files:
            raise NotFound
        return _send(request, self._files[path], {})


def _send(request: HttpRequest, file: File, more: dict[str, str]) -> HTTPResponse:
    headers = {**_HEADERS, "ETag": file.etag, **more}
    known = (tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(","))
    if file.etag in known:
        return HTTPResponse(status=304, headers=headers)
    return raw(file.data, 200, headers, file.content_type)
