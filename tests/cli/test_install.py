"""Fetching the built-in model before the server starts."""

import logging
from pathlib import Path
from typing import Any

import pytest

from plimsoll import config
from plimsoll.catalog.source import BUILTIN
from plimsoll.cli import serve as install
from plimsoll.errors import LoadFailed


@pytest.fixture
def settings(tmp_path: Path) -> config.Config:
    return config.parse({"models": {"cache_dir": str(tmp_path), "offline": True}})


def test_a_failed_fetch_is_a_warning_and_no_error(settings, monkeypatch, caplog):
    def fail(*_: Any, **__: Any) -> None:
        raise LoadFailed("no network")

    monkeypatch.setattr(install, "resolve", fail)
    install.fetch_builtin_model(settings)
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "no network" in warning.getMessage()


def test_an_installed_model_is_not_fetched(settings, monkeypatch):
    monkeypatch.setattr(install, "installed", lambda _source, _cache_dir: True)
    monkeypatch.setattr(install, "resolve", lambda *_, **__: pytest.fail("fetched all the same"))
    install.fetch_builtin_model(settings)


@pytest.mark.parametrize("terminal", [False, True])
def test_the_fetch_goes_where_and_how_the_config_says(settings, monkeypatch, tmp_path, terminal):
    calls = []

    def resolve(source: Any, *, cache_dir: Path, offline: bool, progress: Any) -> None:
        progress("fetch", 0, 0)
        progress("convert", 5, 10)
        calls.append((source, cache_dir, offline))

    monkeypatch.setattr(install, "resolve", resolve)
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    install.fetch_builtin_model(settings)
    assert calls == [(BUILTIN, tmp_path, True)]
