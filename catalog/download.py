"""The child that fetches a repo: ``python -m plimsoll.catalog.download REPO PROGRESS RESULT offline|online``.

It keeps the file PROGRESS at "done total" in bytes, and writes the snapshot's folder into RESULT. What went wrong is
the last line on stderr.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url, snapshot_download
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # it is in its documentation

from plimsoll.catalog.hub import Report, bar_class, silent_bar
from plimsoll.catalog.source import split_revision

_SIDE_BY_SIDE = 4
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOCK_BYTES = 1 << 20


class _Wanted(NamedTuple):
    name: str
    url: str
    sha256: str
    size: int


def fetch_weights(repo: str, revision: str, patterns: Sequence[str], report: Report) -> int:
    """Bring the weights of a repo's revision into the library's cache, where it then finds them; their bytes come back.

    Raises what the library raises, and ``OSError`` for a file that is not what the hub says.
    """
    files: Any = snapshot_download(
        repo, revision=revision, allow_patterns=[*patterns], dry_run=True, tqdm_class=silent_bar()
    )
    weights = [file for file in files if file.will_download and file.filename.endswith(".safetensors")]
    with ThreadPoolExecutor(_SIDE_BY_SIDE, "fetch") as pool:
        wanted = [one for one in pool.map(lambda file: _ask(repo, file), weights) if one]
        total = sum(one.size for one in wanted)
        bar = bar_class(lambda done, _: report(min(done, total), total), together=sum)
        list(pool.map(lambda one: _fetch(repo, one, bar), wanted))
    return total


def left_behind(repo: str) -> int:
    """The bytes of files that were begun."""
    return sum(file.stat().st_size for file in _blobs(repo).glob("*.incomplete") if "." not in file.stem)


def _blobs(repo: str) -> Path:
    return Path(constants.HF_HUB_CACHE, f"models--{repo.replace('/', '--')}", "blobs")


def _ask(repo: str, file: Any) -> _Wanted | None:
    url = hf_hub_url(repo, file.filename, revision=file.commit_hash)
    told = get_hf_file_metadata(url)
    # What is named by no hash can't be checked, and the largest are not served this way: the library's business.
    if told.size is None or told.size > constants.MAX_HTTP_DOWNLOAD_SIZE or not _SHA256.fullmatch(told.etag or ""):
        return None
    return _Wanted(file.filename, url, str(told.etag), told.size)


def _fetch(repo: str, wanted: _Wanted, bar: type[Any]) -> None:
    blobs = _blobs(repo)
    blobs.mkdir(parents=True, exist_ok=True)
    blob, part = blobs / wanted.sha256, blobs / f"{wanted.sha256}.incomplete"
    with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as out:
        # Whoever fetches the same file waits here, and finds it whole.
        fcntl.flock(out, fcntl.LOCK_EX)
        if blob.exists():
            part.unlink(missing_ok=True)
            return
        there = out.seek(0, os.SEEK_END)
        if there > wanted.size:
            there = out.truncate(0)
            out.seek(0)
        headers = build_hf_headers()
        http_get(wanted.url, out, resume_size=there, headers=headers, expected_size=wanted.size, tqdm_class=bar)
        out.flush()
        if _sha256(part) != wanted.sha256:
            part.unlink()
            raise OSError(f"{wanted.name} is not what the hub says it is; it was dropped")
        part.rename(blob)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


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


def download(location: str, *, offline: bool, report: Report) -> Path:
    """The snapshot of ``org/name[@revision]`` in huggingface_hub's cache. Raises ``Refused``.

    ``report`` gets bytes done and in all.
    """
    repo, revision = split_revision(location)
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=PATTERNS, local_files_only=True))
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
        there = fetch_weights(repo, revision, PATTERNS, report)
        # What is left is mostly small, and it is the library that knows how its cache is laid out.
        rest = bar_class(lambda done, total: report(there + done, there + total))
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=PATTERNS, tqdm_class=rest))
    # The library keeps no reference to a revision that is named by its commit, and nobody would find it again.
    reference = folder.parent.parent / "refs" / revision
    if not reference.exists():
        reference.parent.mkdir(exist_ok=True)
        reference.write_text(folder.name, encoding="ascii")
    return folder


@contextlib.contextmanager
def told(repo: str) -> Iterator[None]:
    """What huggingface_hub raises over the network, as ``Refused`` with what to do."""
    try:
        with _unwrapped():
            yield
    except errors.GatedRepoError:
        hint = f"accept its terms on the hub and give a token with `hf auth login` or $HF_TOKEN ({repo} is gated)"
    except errors.RevisionNotFoundError:
        hint = f"{repo} has no such revision; name a branch, a tag or a commit of it"
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
