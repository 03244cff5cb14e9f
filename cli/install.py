"""Fetching the built-in model before the server starts, with a progress bar."""

import logging

from plimsoll.catalog import BUILTIN, default_cache_dir, installed, resolve
from plimsoll.cli.bars import progress_bar
from plimsoll.config import Config
from plimsoll.errors import PlimsollError

_log = logging.getLogger("plimsoll.cli.install")


def fetch_builtin_model(config: Config) -> None:
    """Fetch and convert it if it is not there. A failure is logged: the server is of use without it."""
    cache_dir = default_cache_dir(config)
    if installed(BUILTIN, cache_dir):
        return
    _log.info("fetching the built-in model %s (93 MB, once) into %s", BUILTIN.name, cache_dir)
    try:
        with progress_bar(BUILTIN.name) as progress:
            resolve(BUILTIN, cache_dir=cache_dir, offline=config.models.offline, progress=progress)
    except (PlimsollError, OSError) as error:
        _log.warning("the built-in model could not be fetched: %s", error)
