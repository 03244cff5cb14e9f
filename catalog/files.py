"""Where a model's files lie on disk, whether they are complete, and how large they are."""

import hashlib
import os
from pathlib import Path

import msgspec

from plimsoll.catalog.strange import read_json
from plimsoll.engine.protocol import ModelSource

_CONVERTER = 1  # counts up when a conversion's result changes, so that old ones are not used


class _Index(msgspec.Struct, frozen=True):
    """``model.safetensors.index.json``: tensor name -> file name."""

    weight_map: dict[str, str]


def local_folder(source: ModelSource, cache_dir: Path) -> Path | None:
    """The folder of MLX files that ``source`` has or will have; ``None`` for a repo not fetched yet and a fake.

    Raises ``OSError`` for a GGUF file that is not there.
    """
    match source.kind:
        case "folder":
            return Path(source.location)
        case "gguf":
            return _converted_folder(Path(source.location), cache_dir)
        case "builtin":
            return cache_dir / "builtin" / source.name
        case "repo":
            return _snapshot_folder(source.location)
        case "fake":
            return None


def problem(folder: Path) -> str | None:
    """What keeps ``folder`` from being a whole MLX model, as half a sentence; ``None`` where nothing does."""
    if not folder.is_dir():
        return "is not a folder"
    if not (folder / "config.json").is_file():
        return "has no config.json, so it is not an MLX model"
    try:
        files = _weight_files(folder)
        missing = [file.name for file in files if not file.is_file()]
    except (OSError, ValueError) as error:
        return f"has a model.safetensors.index.json that can't be read ({str(error)[:300]})"
    if not files:
        return "has no model*.safetensors (fetch or convert the model in MLX format)"
    if missing:
        return f"lacks {len(missing)} of {len(files)} weight files, the first is {missing[0]}"
    return None


def weights_bytes(folder: Path) -> int:
    """The sum of the weight files' sizes. Raises ``OSError`` for a missing one, ``ValueError`` for a bad index."""
    return sum(file.stat().st_size for file in _weight_files(folder))


def _weight_files(folder: Path) -> list[Path]:
    """The files that the index names, or else every ``model*.safetensors``."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = set(read_json(index, _Index).weight_map.values())
        return [folder / Path(name).name for name in sorted(names)]
    return sorted(folder.glob("model*.safetensors"))


def _converted_folder(file: Path, cache_dir: Path) -> Path:
    """One folder for each content of a file, as far as path, size and time tell."""
    stat = file.stat()
    key = f"{_CONVERTER}\0{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    digest = hashlib.sha256(os.fsencode(key)).hexdigest()[:12]
    return cache_dir / "converted" / f"{file.stem[:80]}-{digest}"


def _snapshot_folder(repo: str) -> Path | None:
    """The snapshot of ``main`` in huggingface_hub's cache; read by hand, since its functions import an HTTP client."""
    from huggingface_hub.constants import HF_HUB_CACHE  # noqa: PLC0415 - the front process starts without it

    storage = Path(HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    try:
        revision = (storage / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return storage / "snapshots" / revision if revision else None
