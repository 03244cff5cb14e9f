"""Where a model's files are or will be, and whether they are there."""

from pathlib import Path

import platformdirs

from plimsoll.catalog.disk import Place
from plimsoll.catalog.files import local_folder, problem, weights_bytes
from plimsoll.catalog.source import ModelSource, split_parts
from plimsoll.config import Config


def place(source: ModelSource, cache_dir: Path) -> Place:
    """The place on disk of ``source``, by which work on different disks is kept apart."""
    match source.kind:
        case "repo":
            path, folder = f"the cached copy of {source.location}", "the Hugging Face cache"
        case "builtin" | "fake":
            path, folder = str(cache_dir / "builtin" / source.name), str(cache_dir)
        case _:
            path, folder = source.location, str(Path(source.location).parent)
    if source.adapter:
        path, folder = f"{path} or {source.adapter}", f"{folder} or {Path(source.adapter).parent}"
    return Place(path, folder)


def size_bytes(source: ModelSource, cache_dir: Path) -> int | None:
    """The size of the weights on disk; ``None`` while they are not there, or not all of them."""
    try:
        if source.kind == "gguf":
            return sum(part.stat().st_size for part in split_parts(Path(source.location)))
        folder = local_folder(source, cache_dir)
        return weights_bytes(folder) if folder and problem(folder) is None else None
    except (OSError, ValueError):
        return None


def installed(source: ModelSource, cache_dir: Path) -> bool:
    """Whether the model can be loaded without fetching anything; a GGUF file may still have to be converted."""
    return source.kind == "fake" or size_bytes(source, cache_dir) is not None


def default_cache_dir(config: Config) -> Path:
    """``models.cache_dir``, or the platform's cache folder for Plimsoll."""
    chosen = config.models.cache_dir
    return Path(chosen).expanduser().absolute() if chosen else Path(platformdirs.user_cache_dir("plimsoll"))
