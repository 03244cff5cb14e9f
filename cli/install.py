"""Fetching the built-in model before the server starts, with a progress bar."""

import logging
import sys
from collections.abc import Callable

from plimsoll.catalog import BUILTIN, default_cache_dir, installed, resolve
from plimsoll.config import Config
from plimsoll.errors import PlimsollError

_log = logging.getLogger("plimsoll.cli.install")
Progress = Callable[[str, int, int], None]


def fetch_builtin_model(config: Config) -> None:
    """Fetch and convert it if it is not there. A failure is logged: the server is of use without it."""
    cache_dir = default_cache_dir(config)
    if installed(BUILTIN, cache_dir):
        return
    _log.info("fetching the built-in model %s (93 MB, once) into %s", BUILTIN.name, cache_dir)
    try:
        if sys.stderr.isatty():
            _with_bar(config)
        else:
            _resolve(config, lambda _stage, _done, _total: None)
    except (PlimsollError, OSError) as error:
        _log.warning("the built-in model could not be fetched: %s", error)


def _resolve(config: Config, progress: Progress) -> None:
    resolve(BUILTIN, cache_dir=default_cache_dir(config), offline=config.models.offline, progress=progress)


def _with_bar(config: Config) -> None:
    from rich import progress as bars  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415 - only for a terminal

    columns = bars.TextColumn("{task.description}"), bars.BarColumn(), bars.DownloadColumn(), bars.TimeRemainingColumn()
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(BUILTIN.name, total=None)

        def progress(stage: str, done: int, total: int) -> None:
            bar.update(task, description=f"{BUILTIN.name}: {stage}", completed=done, total=total or None)

        _resolve(config, progress)
