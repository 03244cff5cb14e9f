"""The child that asks the hub about a repo without fetching it: ``python -m plimsoll.catalog.look REPO``.

It prints an ``Ahead`` as JSON. What went wrong is the last line on stderr.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download

from plimsoll.catalog.ahead import Ahead
from plimsoll.catalog.download import PATTERNS, Refused, told
from plimsoll.catalog.hub_bar import silent_bar
from plimsoll.catalog.resumable import left_behind
from plimsoll.catalog.safetensors import Tensor
from plimsoll.catalog.strange import read_object
from plimsoll.catalog.weigh import weigh_tensors
from plimsoll.memory.needs import Weight

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


def look(repo: str) -> Ahead:
    """What fetching the repo would take, and what the model weighs. Raises what ``told`` translates."""
    silent = silent_bar()
    files: Any = snapshot_download(repo, allow_patterns=PATTERNS, dry_run=True, tqdm_class=silent)
    folder = Path(constants.HF_HUB_CACHE)
    todo = max(0, sum(file.file_size or 0 for file in files if file.will_download) - left_behind(repo))
    return Ahead(todo, todo, str(folder), _weight(repo, {file.filename for file in files}, silent))


def _weight(repo: str, names: set[str], silent: type[Any]) -> Weight | None:
    weights = sorted(name for name in names if name.endswith(".safetensors"))
    if not 0 < len(weights) <= _MOST_FILES or "config.json" not in names:
        return None
    # Not into the cache: a snapshot with one file in it would pass for a fetched one.
    with tempfile.TemporaryDirectory(prefix="plimsoll-look-") as scratch:
        config = read_object(Path(hf_hub_download(repo, "config.json", local_dir=scratch, tqdm_class=silent)))
    tensors = {
        key: Tensor(one.dtype, tuple(one.shape), (one.data_offsets[0], one.data_offsets[1]))
        for name in weights
        for key, one in HfApi().parse_safetensors_file_metadata(repo, name).tensors.items()
    }
    return weigh_tensors(config, tensors, {})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
