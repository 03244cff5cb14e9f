"""A model's files out of a Hugging Face repo, kept in huggingface_hub's own cache."""

import io
import os
import threading
import time
from pathlib import Path
from typing import Any

from plimsoll.engine.engine import Progress
from plimsoll.engine.protocol import ModelSource
from plimsoll.errors import LoadFailed

# What mlx-lm fetches, but no Python files: a model's own code is never run.
_PATTERNS = [
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


def fetch_repo(source: ModelSource, *, offline: bool, progress: Progress) -> Path:
    """The snapshot of the repo ``source.location``: the one in the cache if it is whole, else fetched.

    Raises:
        LoadFailed: no such repo, no access, no network, or offline with an incomplete cache.

    """
    from huggingface_hub import errors, snapshot_download  # noqa: PLC0415 - slow, and the front process has no need

    repo = source.location
    try:
        return Path(snapshot_download(repo, allow_patterns=_PATTERNS, local_files_only=True))
    except (OSError, errors.IncompleteSnapshotError) as error:
        if offline or _hub_is_off():
            which = "models.offline" if offline else "$HF_HUB_OFFLINE"
            raise LoadFailed(
                f"The model {source.name!r} ({repo}) is not complete in the Hugging Face cache and {which} is on: "
                f"fetch it with `hf download {repo}` where there is a network, or switch that off."
            ) from error
    except ValueError as error:
        raise LoadFailed(f"The model {source.name!r} has no usable repo id: {error}.") from None
    try:
        return Path(snapshot_download(repo, allow_patterns=_PATTERNS, tqdm_class=_bar_class(progress)))
    except errors.GatedRepoError:
        hint = f"accept its terms on the hub and give a token with `hf auth login` or $HF_TOKEN ({repo} is gated)"
    except errors.RepositoryNotFoundError:
        hint = f"there is no public repo {repo}; check its name, or give a token with $HF_TOKEN if it is private"
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        hint = f"check the network and the free disk space ({type(error).__name__}: {reason})"
    raise LoadFailed(f"The model {source.name!r} could not be fetched from the Hugging Face hub: {hint}.")


def _hub_is_off() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _bar_class(progress: Progress) -> type[Any]:
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
                    progress("fetch", done, max(done, total))
            return drawn

    Bar.set_lock(threading.RLock())
    return Bar
