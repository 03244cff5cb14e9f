"""The child that fetches a repo: ``python -m plimsoll.catalog.download REPO PROGRESS RESULT offline|online``.

It keeps the file PROGRESS at "done total" in bytes, and writes the snapshot's folder into RESULT. What went wrong is
the last line on stderr.
"""

import contextlib
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import errors, snapshot_download

# What mlx-lm fetches, but no Python files and no pickles: a model's own code is never run.
PATTERNS = [
    "*.json",
    "model*.safetensors",
    "tokenizer.model",
    "*.tiktoken",
    "tiktoken.model",
    "*.txt",
    "*.jsonl",
    "*.jinja",
]
_REPORT_S = 0.25

Report = Callable[[int, int], None]


class Refused(Exception):
    """The repo can't be had; the message says why and what to do."""


def main(arguments: list[str]) -> int:
    """The command: 0, or 1 with one line on stderr."""
    repo, so_far, result, network = arguments

    def report(done: int, total: int) -> None:
        Path(so_far).write_text(f"{done} {total}", encoding="ascii")

    try:
        folder = download(repo, offline=network == "offline", report=report)
    except Refused as refusal:
        sys.stderr.write(f"ERROR: {refusal}\n")
        return 1
    Path(result).write_text(str(folder), encoding="utf-8")
    return 0


def download(repo: str, *, offline: bool, report: Report) -> Path:
    """The repo's snapshot in huggingface_hub's cache; ``report`` gets bytes done and in all. Raises ``Refused``."""
    try:
        return Path(snapshot_download(repo, allow_patterns=PATTERNS, local_files_only=True))
    except (OSError, errors.IncompleteSnapshotError):
        if offline or _hub_is_off():
            which = "models.offline" if offline else "$HF_HUB_OFFLINE"
            raise Refused(
                f"{repo} is not complete in the Hugging Face cache and {which} is on: fetch it with `hf download "
                f"{repo}` where there is a network, or switch that off"
            ) from None
    except ValueError as error:
        raise Refused(f"{repo} is no usable repo id: {_line(error)}") from None
    with told(repo):
        return Path(snapshot_download(repo, allow_patterns=PATTERNS, tqdm_class=bar_class(report)))


@contextlib.contextmanager
def told(repo: str) -> Iterator[None]:
    """What huggingface_hub raises over the network, as ``Refused`` with what to do."""
    try:
        yield
    except errors.GatedRepoError:
        hint = f"accept its terms on the hub and give a token with `hf auth login` or $HF_TOKEN ({repo} is gated)"
    except errors.RepositoryNotFoundError:
        hint = f"there is no public repo {repo}; check its name, or give a token with $HF_TOKEN if it is private"
    except (OSError, ValueError) as error:
        hint = f"check the network and the free disk space ({type(error).__name__}: {_line(error)})"
    else:
        return
    raise Refused(hint)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _hub_is_off() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def bar_class(report: Report) -> type[Any]:
    """A progress bar for huggingface_hub that draws nothing and reports bytes, from whatever thread it is told."""
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
                # Received and written bytes have a bar each; the one that is further tells.
                done = max((int(bar.n) for bar in bars), default=0)
                total = max((int(bar.total or 0) for bar in bars), default=0)
                if done and (time.monotonic() - last >= _REPORT_S or done == total):
                    last = time.monotonic()
                    report(done, max(done, total))
            return drawn

    Bar.set_lock(threading.RLock())
    return Bar


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
