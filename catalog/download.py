"""The child that fetches a repo: ``python -m plimsoll.catalog.download REPO PROGRESS RESULT offline|online``.

It keeps the file PROGRESS at "done total" in bytes, and writes the snapshot's folder into RESULT. What went wrong is
the last line on stderr.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import errors, snapshot_download

from plimsoll.catalog.hub_bar import Report, bar_class
from plimsoll.catalog.resumable import fetch_weights

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
        there = fetch_weights(repo, PATTERNS, report)
        # What is left is mostly small, and it is the library that knows how its cache is laid out.
        rest = bar_class(lambda done, total: report(there + done, there + total))
        return Path(snapshot_download(repo, allow_patterns=PATTERNS, tqdm_class=rest))


@contextlib.contextmanager
def told(repo: str) -> Iterator[None]:
    """What huggingface_hub raises over the network, as ``Refused`` with what to do."""
    try:
        with _unwrapped():
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


@contextlib.contextmanager
def _unwrapped() -> Iterator[None]:
    """A dry run tells every failure as one of its own."""
    try:
        yield
    except errors.DryRunError as error:
        raise (error.__cause__ or error) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _hub_is_off() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
