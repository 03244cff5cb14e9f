"""A model's files out of a Hugging Face repo, kept in huggingface_hub's own cache.

A child process fetches them: the front process, which may be the one that asks, stays free of an HTTP client that
talks to strangers.
"""

import io
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from plimsoll.catalog import child_process
from plimsoll.catalog.source import ModelSource, Progress
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
        failure = child_process.run("plimsoll.catalog.download", *arguments, tick=tick)
        if failure is None:
            tick()
            return Path(result.read_text(encoding="utf-8"))
    raise LoadFailed(f"The model {source.name!r} could not be fetched from the Hugging Face hub: {failure}.")


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii").split()
    except FileNotFoundError:
        return []


_REPORT_S = 0.25

Report = Callable[[int, int], None]
"""Called with the bytes done and in all."""


def silent_bar() -> type[Any]:
    """A progress bar that draws nothing."""
    return bar_class(lambda _done, _total: None)


def bar_class(report: Report, together: Callable[[Iterable[int]], int] = max) -> type[Any]:
    """A progress bar for huggingface_hub that draws nothing and reports bytes, from whatever thread it is told.

    ``together`` makes one figure of those of several bars.
    """
    from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore] # noqa: PLC0415 - huggingface_hub brings it

    lock = threading.Lock()
    last = 0.0
    bars: list[Any] = []

    class Bar(tqdm):  # type: ignore[misc,unused-ignore] # tqdm has no types of its own
        monitor_interval = 0  # no thread of its own

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "file": io.StringIO(), "disable": False})
            if self.unit == "B":
                bars.append(self)

        def display(self, *_args: Any, **_options: Any) -> None:
            """Draw nothing."""

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal last
            drawn: bool | None = super().update(n)
            with lock:
                done = together([int(bar.n) for bar in bars] or [0])
                total = together([int(bar.total or 0) for bar in bars] or [0])
                if done and (time.monotonic() - last >= _REPORT_S or done == total):
                    last = time.monotonic()
                    report(done, max(done, total))
            return drawn

    Bar.set_lock(threading.RLock())
    return Bar
