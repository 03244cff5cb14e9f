"""A model's files out of a Hugging Face repo, kept in huggingface_hub's own cache.

A child process fetches them: the front process, which may be the one that asks, stays free of an HTTP client that
talks to strangers.
"""

import tempfile
from pathlib import Path

from plimsoll.catalog import child
from plimsoll.engine.engine import Progress
from plimsoll.engine.protocol import ModelSource
from plimsoll.errors import LoadFailed


def fetch_repo(source: ModelSource, *, offline: bool, progress: Progress) -> Path:
    """The snapshot of the repo ``source.location``: the one in the cache if it is whole, else fetched.

    Raises:
        LoadFailed: no such repo, no access, no network, or offline with an incomplete cache.

    """
    with tempfile.TemporaryDirectory(prefix="plimsoll-fetch-") as scratch:
        so_far, result = Path(scratch) / "progress", Path(scratch) / "folder"

        def tick() -> None:
            match _words(so_far):
                case [done, total] if done.isdigit() and total.isdigit():  # else it is just being written
                    progress("fetch", int(done), int(total))

        arguments = (source.location, str(so_far), str(result), "offline" if offline else "online")
        failure = child.run("plimsoll.catalog.download", *arguments, tick=tick)
        if failure is None:
            tick()
            return Path(result.read_text(encoding="utf-8"))
    raise LoadFailed(f"The model {source.name!r} could not be fetched from the Hugging Face hub: {failure}.")


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii").split()
    except FileNotFoundError:
        return []
