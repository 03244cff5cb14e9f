"""What benches share that load the built-in model into their own process, as a worker would."""

import os
import sys
from pathlib import Path

from plimsoll import config
from plimsoll.catalog.fetch import resolve
from plimsoll.catalog.installed import default_cache_dir
from plimsoll.catalog.source import BUILTIN
from plimsoll.engine.handle.environment import worker_environment

_BEGUN_ANEW = "PLIMSOLL_BENCH"


def builtin_folder() -> Path:
    """The built-in model's files, which are fetched if they are not here yet."""
    return resolve(BUILTIN, cache_dir=default_cache_dir(config.load()), offline=False, progress=lambda *_: None)


def with_worker_environment() -> None:
    """Begin this program anew as a worker would: BLAS and heap are settings of the environment."""
    if os.environ.get(_BEGUN_ANEW) != "worker":  # LD_PRELOAD is added to what is there: it never looks finished
        wanted = worker_environment("auto", default_cache_dir(config.load()))
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted, _BEGUN_ANEW: "worker"})
