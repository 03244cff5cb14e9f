"""A real server on the fake engine, and Chromium looking at its page."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from lasting_port import lasting_port
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

DEADLINE_S = 60
ARGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

expect.set_options(timeout=1000 * DEADLINE_S)


class Site:
    """A ``plimsoll serve`` process that can be stopped and started again on its port, with one black box."""

    def __init__(
        self, folder: Path, entries: dict[str, Any], sections: dict[str, Any], env: dict[str, str] | None = None
    ) -> None:
        plain = {name: {"source": entry} if isinstance(entry, str) else entry for name, entry in entries.items()}
        self._settings = {
            "server": {"port": 0, "keepalive": "100ms"},
            "models": {"builtin": False, "cache_dir": str(folder), "entries": plain},
            "logging": {"file": "none", "blackbox": str(folder / "blackbox.sqlite")},
        }
        self._file = folder / "plimsoll.yaml"
        # Whatever models this machine has are none of the tests'.
        self._env = {**os.environ, "HF_HOME": str(folder / "hf"), **(env or {})}
        self._process: subprocess.Popen[str] | None = None
        self._port = lasting_port()
        self.configure(**sections)

    def configure(self, **sections: Any) -> None:
        """Write its file anew, for a start or a reload to read."""
        self._file.write_text(json.dumps(self._settings | sections))  # JSON is YAML

    def start(self) -> None:
        command = [sys.executable, "-m", "plimsoll", "serve", "--config", str(self._file), "--port", str(self._port)]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=self._env
        )
        assert self._process.stdout
        found = re.search(r"http://[\d.:]+", self._process.stdout.readline())
        assert found, "the server did not start"
        self.url = found[0]

    def stop(self) -> None:
        if self._process is None:
            return
        # Twice: an answer that a failed test left running must not be waited for.
        self._process.terminate()
        self._process.terminate()
        self._process.wait(DEADLINE_S)
        assert self._process.stdout
        self._process.stdout.close()
        self._process = None

    def model(self, name: str) -> dict[str, Any]:
        models = httpx.get(f"{self.url}/admin/models", timeout=DEADLINE_S).json()["models"]
        return next(one for one in models if one["name"] == name)

    def load(self, name: str) -> None:
        httpx.post(f"{self.url}/admin/models/{name}/load", timeout=DEADLINE_S).raise_for_status()


@contextlib.contextmanager
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Site]]:
    started: list[Site] = []

    def start(entries: dict[str, Any], env: dict[str, str] | None = None, **sections: Any) -> Site:
        started.append(Site(tmp_path_factory.mktemp("site"), entries, sections, env))
        started[-1].start()
        return started[-1]

    yield start
    for site in started:
        site.stop()


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Site]]:
    """``serve({"a": "fake:..."}, memory={...})`` starts a server; ``env`` adds to its environment."""
    with sites(tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="module")
def serve_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Site]]:
    """As ``serve``, for a server that a module's tests share."""
    with sites(tmp_path_factory) as start:
        yield start


# Not longer than a module: while Playwright runs, no other test can use asyncio.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        reason = "chromium is not installed (apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=ARGS)
        yield running
        running.close()


class Visitor:
    """A browser's window; what went wrong in it is in ``errors``, what it asked for in ``requests``."""

    def __init__(self, context: BrowserContext) -> None:
        self.page: Page = context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("request", lambda request: self.requests.append(request.url))


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visitor]]:
    """``visit(site)`` opens its page; keywords are the browser context's (viewport, color_scheme ...)."""
    contexts: list[BrowserContext] = []

    def open_page(site: Site, **options: Any) -> Visitor:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        visitor = Visitor(context)
        visitor.page.goto(site.url)
        expect(visitor.page.locator("#level")).to_have_text(re.compile("normal|warning|critical|emergency|норма"))
        return visitor

    yield open_page
    for context in contexts:
        context.close()
