"""A progress bar on stderr, where somebody looks at it."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator

from plimsoll.cli.output import at_terminal, duration
from plimsoll.journal.lines import size

Progress = Callable[[str, int, int], None]
"""Called with the stage, and the bytes done of a total; a total of 0 is not known."""

# The speed is that of the last seconds: what was there before a resumed download began costs no time.
_SPEED_OVER_S = 10.0


@contextlib.contextmanager
def progress_bar(name: str) -> Iterator[Progress]:
    """What draws the bar; it draws nothing where stderr is no terminal, and leaves nothing behind."""
    if not at_terminal():
        yield lambda _stage, _done, _total: None
        return
    from rich import progress as bars  # noqa: PLC0415 - only for a terminal
    from rich.console import Console  # noqa: PLC0415 - only for a terminal

    columns = bars.TextColumn("{task.description}"), bars.BarColumn(), bars.TextColumn("{task.fields[figures]}")
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None, figures="")
        speed = Speed()

        def progress(stage: str, done: int, total: int) -> None:
            figures = speed.figures(stage, done, total, time.monotonic())
            bar.update(task, description=f"{name}: {stage}", completed=done, total=total or None, figures=figures)

        yield progress


class Speed:
    """Bytes per second over the last ten, and what they make of the rest."""

    def __init__(self) -> None:
        self._stage = ""
        self._seen: deque[tuple[float, int]] = deque()

    def figures(self, stage: str, done: int, total: int, now_s: float) -> str:
        """``1.2 GB of 4.3 GB, 34 MB/s, 2 min left``, as far as it is known."""
        if stage != self._stage or (self._seen and done < self._seen[-1][1]):
            self._stage = stage
            self._seen.clear()
        self._seen.append((now_s, done))
        while now_s - self._seen[0][0] > _SPEED_OVER_S:
            self._seen.popleft()
        text = f"{size(done)} of {size(total)}" if total else size(done) if done else ""
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        if last > first and last_s > first_s:
            per_s = (last - first) / (last_s - first_s)
            text += f", {size(per_s)}/s"
            if total > done:
                text += f", {duration((total - done) / per_s)} left"
        return text
