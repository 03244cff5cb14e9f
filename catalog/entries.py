"""An entry of the configuration as a model that may be served."""

import re
from collections.abc import Mapping
from concurrent.futures import wait
from functools import partial
from pathlib import Path

import msgspec

from plimsoll.catalog.defaults import Defaults, defaults_of
from plimsoll.catalog.disk import Disk, Place
from plimsoll.catalog.group_hosts import group_of
from plimsoll.catalog.source import BUILTIN, BUILTIN_EMBEDDING, Group, ModelSource
from plimsoll.config import ModelEntry, ModelsConfig
from plimsoll.errors import ConfigError

REPO = re.compile(r"\w[\w.-]*/\w[\w.-]*(@\w[\w.-]*)?", re.ASCII)
"""The id of a repo on a hub, with or without a revision."""
_FAKE, _BUILTIN = "fake:", "builtin:"
_PATHS = ("/", "~", "./", "../")
# How long to wait for a disk to say whether an entry's source is a folder.
_ANSWER_S = 2.0


class CatalogModel(msgspec.Struct, frozen=True):
    """One model that may be served. ``idle_ttl_s`` ``None`` means that it is never unloaded for being idle.

    ``embeddings`` says that it makes embeddings; where it is not set, the model's own files may still say so. A
    ``group`` of hosts may serve it together, on ports from ``first_port`` on. ``chat_template`` is a file that takes
    the place of the template in the model's files. ``defaults`` hold where a request says nothing: those of the
    entry, or, with a ``profile``, those of that one of its ``profiles``.
    """

    source: ModelSource
    pin: bool = False
    idle_ttl_s: float | None = None
    context: int | None = None
    embeddings: bool = False
    group: Group | None = None
    first_port: int = 0
    chat_template: str = ""
    defaults: Defaults = Defaults()
    profiles: dict[str, Defaults] = {}
    profile: str = ""

    def loads_like(self, other: "CatalogModel") -> bool:
        """Whether a worker that was loaded for the one serves the other as well."""
        keys = ("source", "context", "embeddings", "group", "chat_template")
        return all(getattr(self, key) == getattr(other, key) for key in keys)

    def with_profile(self, profile: str) -> "CatalogModel | None":
        """The same model with the defaults of one of its profiles; None where it has no such profile."""
        if profile not in self.profiles:
            return None
        return msgspec.structs.replace(self, defaults=self.profiles[profile], profile=profile)


def model_of(name: str, entry: ModelEntry, config: ModelsConfig, *, first_port: int, is_folder: bool) -> CatalogModel:
    """The model of an entry. Raises ``ConfigError`` for a source that can't be used."""
    source = _classify(name, entry.source, is_folder=is_folder)
    if entry.adapter:
        source = msgspec.structs.replace(source, adapter=str(absolute(entry.adapter)))
    defaults = defaults_of(entry)
    return CatalogModel(
        source,
        pin=entry.pin,
        idle_ttl_s=config.idle_ttl if entry.idle_ttl is msgspec.UNSET else entry.idle_ttl,
        context=entry.context,
        embeddings=entry.embeddings or source.location == BUILTIN_EMBEDDING.location,
        group=group_of(name, entry),
        first_port=first_port,
        chat_template=str(absolute(entry.chat_template)) if entry.chat_template else "",
        defaults=defaults,
        profiles={profile: defaults_of(one).over(defaults) for profile, one in entry.profiles.items()},
    )


def source_text(source: ModelSource) -> str:
    """What ``source`` of an entry has to say so that the entry is for this model."""
    return f"{source.kind}:{source.name}" if source.kind == "builtin" else source.location


def folders_among(entries: Mapping[str, ModelEntry], disk: Disk) -> set[str]:
    """The names of the entries whose source is a folder, as far as disks answer; the looks tell most of them."""
    asked = {}
    for name, entry in entries.items():
        # A source that is written as a path is a folder; the disk need not be asked.
        is_path = entry.source.startswith(_PATHS) and not entry.source.endswith(".gguf")
        if not is_path and not entry.source.startswith((_FAKE, _BUILTIN)):
            path = absolute(entry.source)
            asked[name] = disk.ask(Place(str(path), str(path.parent)), partial(_is_folder, path))
    wait(asked.values(), _ANSWER_S)
    return {name for name, future in asked.items() if future.done() and not future.exception() and future.result()}


def absolute(text: str) -> Path:
    """The path that ``text`` means, with ~ for the user's home."""
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:  # ~somebody, whose home is not known
        return Path(text)


def _classify(name: str, text: str, *, is_folder: bool) -> ModelSource:
    if text.startswith(_FAKE):
        return ModelSource(name, "fake", text.removeprefix(_FAKE))
    for known in (BUILTIN, BUILTIN_EMBEDDING):
        if text == _BUILTIN + known.name:
            return msgspec.structs.replace(known, name=name)
    path = absolute(text)
    if is_folder:
        return ModelSource(name, "folder", str(path))
    if text.endswith(".gguf"):
        return ModelSource(name, "gguf", str(path))
    if text.startswith(_PATHS):
        return ModelSource(name, "folder", str(path))
    if REPO.fullmatch(text):
        return ModelSource(name, "repo", text)
    key = f"models.entries.{name}.source"
    raise ConfigError(
        f"{key}: {text!r} is not allowed, expected a folder, a .gguf file or a Hugging Face repo id like org/name",
        param=key,
    )


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that no file can have
        return False
