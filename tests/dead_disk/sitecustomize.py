"""Put on ``PYTHONPATH``, this makes one folder a disk that does not answer while the file ``$DEAD_DISK_WHILE`` exists.

Whatever looks below ``$DEAD_DISK`` then waits, as in a system call on a dead mount; Python's own thread is what hangs.
A real file system that hangs needs rights that most machines do not give to tests; ``ops/bench/dead_disk.py`` has it.
"""

import builtins
import io
import os
import sys
import time
from typing import Any

_FOLDER = os.environ.get("DEAD_DISK", "")
_WHILE = os.environ.get("DEAD_DISK_WHILE", "")
_stat = os.stat


def _is_dead() -> bool:
    try:
        _stat(_WHILE)
    except OSError:
        return False
    return True


def _waits(real: Any) -> Any:
    def call(path: Any = ".", *arguments: Any, **options: Any) -> Any:
        if isinstance(path, str | bytes | os.PathLike):
            where = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - pathlib asks the disk
            while (where == _FOLDER or where.startswith(f"{_FOLDER}/")) and _is_dead():
                time.sleep(0.02)
        return real(path, *arguments, **options)

    return call


if _FOLDER:
    for _name in ("stat", "lstat", "scandir", "listdir", "open", "readlink", "access"):
        setattr(os, _name, _waits(getattr(os, _name)))
    builtins.open = io.open = _waits(open)  # type: ignore[assignment]

if _FOLDER and "serve" in sys.orig_argv:
    # How long a disk may be silent, a fifth of what it is, so that tests need not wait for that.
    from plimsoll.catalog import disk

    disk.LATE_S /= 5
    from plimsoll.catalog import entries, models_dir, names
    from plimsoll.cli import config_checks

    for _module in (entries, models_dir, names, config_checks):
        _module._ANSWER_S /= 5
    models_dir.EVERY_S /= 5
