"""A repo's weights, fetched so that what an interrupted fetch left is gone on with.

huggingface_hub itself begins every file anew, since two processes could write to one on file systems without locks.
Here each file is held by a lock on itself and compared with the hash that the hub names it by.
"""

import fcntl
import hashlib
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, snapshot_download
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # it is in its documentation

from plimsoll.catalog.hub_bar import Report, bar_class, silent_bar

_SIDE_BY_SIDE = 4
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOCK_BYTES = 1 << 20


class _Wanted(NamedTuple):
    name: str
    url: str
    sha256: str
    size: int


def fetch_weights(repo: str, patterns: Sequence[str], report: Report) -> int:
    """Bring a repo's weights into the library's cache, where it then finds them; their bytes come back.

    Raises what the library raises, and ``OSError`` for a file that is not what the hub says.
    """
    files: Any = snapshot_download(repo, allow_patterns=[*patterns], dry_run=True, tqdm_class=silent_bar())
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
