"""What huggingface_hub takes for a progress bar. Only a child imports the library."""

import io
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

_REPORT_S = 0.25

Report = Callable[[int, int], None]
"""Called with the bytes done and in all."""


def silent_bar() -> type[Any]:
    """A progress bar that tells nobody."""
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
