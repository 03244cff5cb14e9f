"""A fetch in a process of its own, which may be killed at any time: ``python -m plimsoll.catalog.pull NAME [CONFIG]``.

It prints the lines that ``POST /api/pull`` answers with.
"""

import json
import sys
from typing import Any

from plimsoll import config
from plimsoll.catalog.fetch import resolve
from plimsoll.catalog.installed import default_cache_dir
from plimsoll.catalog.names import Catalog
from plimsoll.errors import PlimsollError

_STATUS = {"fetch": "pulling model files", "convert": "converting to MLX"}


def main() -> None:
    """Fetch it; whatever is expected to go wrong is the last line."""
    name, *file = sys.argv[1:]
    try:
        effective = config.load(*file)
        source = Catalog(effective.models).fetchable(name).source
        cache_dir, offline = default_cache_dir(effective), effective.models.offline
        resolve(source, cache_dir=cache_dir, offline=offline, progress=_progress)
    except PlimsollError as error:
        _say({"error": error.message})
    else:
        _say({"status": "success"})


def _progress(stage: str, done: int, total: int) -> None:
    _say({"status": _STATUS.get(stage, stage), "completed": done} | ({"total": total} if total else {}))


def _say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)  # noqa: T201 - its output is what it is for


if __name__ == "__main__":
    main()
