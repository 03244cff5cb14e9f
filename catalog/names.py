"""Model names -> where their files come from, and what is on disk of them. Knows nothing of mlx."""

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from plimsoll.catalog.disk import DISK, Disk
from plimsoll.catalog.entries import REPO, CatalogModel, absolute, folders_among, model_of
from plimsoll.catalog.group_hosts import first_ports
from plimsoll.catalog.layouts import hub_cache, lm_studio_folders
from plimsoll.catalog.models_dir import ModelsDir, all_of
from plimsoll.catalog.source import BUILTIN, BUILTIN_EMBEDDING, ModelSource
from plimsoll.config import ModelsConfig
from plimsoll.errors import ConfigError, UnknownModel

_SHOWN_NAMES = 10
# How long to wait for a new look at models.dir.
_ANSWER_S = 2.0


class _Seen(NamedTuple):
    """The models of the folders as they were seen; ``short`` has the full name of each unique ``name`` of org/name."""

    sources: tuple[Mapping[str, ModelSource], ...]
    models: Mapping[str, CatalogModel]
    short: Mapping[str, str]


class Catalog:
    """The models there are: the config's entries, those that lie in folders, the built-in ones.

    The folders are ``models.dir``, ``models.dirs`` and those of ``models.programs``.

    ``find``, ``names``, ``pinned`` and ``problems`` read memory alone: the folder is looked at in the background, which
    the first ``look_again`` begins. A name from a request is only ever compared with these names; it never becomes part
    of a path.

    Raises:
        ConfigError: an entry's source or ``models.dir`` can't be used.

    """

    def __init__(self, config: ModelsConfig, before: "Catalog | None" = None, disk: Disk = DISK) -> None:
        """Looks at the disk, and waits for it 5 s at most. ``before`` is the one that this is to replace.

        From ``before`` it takes what is known of a ``models.dir`` that stays the same and does not answer now.
        """
        self._config = config
        self._disk = disk
        ports = first_ports(config)
        folders = folders_among(config.entries, disk)
        self._entries = {
            name: model_of(name, entry, config, first_port=ports[name], is_folder=name in folders)
            for name, entry in config.entries.items()
        }
        self._aliases = {alias: name for name, entry in config.entries.items() for alias in entry.aliases}
        self._profile_aliases = {
            alias: f"{name}:{profile}"
            for name, entry in config.entries.items()
            for profile, one in entry.profiles.items()
            for alias in one.aliases
        }
        self.folders = self._open(before)
        enabled = {name: model for name, model in self._entries.items() if config.entries[name].enabled}
        self._fixed = MappingProxyType(enabled)
        self._seen: _Seen | None = None

    def close(self) -> None:
        """Look at no folder any more. The names that were found stay."""
        for folder in self.folders:
            folder.close()

    @property
    def config(self) -> ModelsConfig:
        """The section that it was made of."""
        return self._config

    def names(self) -> list[str]:
        """Every name that ``find`` accepts: entries first, then ``models.dir``, then the built-in models."""
        return list(self._models())

    def other_names(self) -> dict[str, str]:
        """Every alias and every ``name:profile``, each with the name of its model."""
        aliases = {alias: name for alias, name in self._aliases.items() if name in self._fixed}
        profiles = {f"{name}:{profile}": name for name, model in self._fixed.items() for profile in model.profiles}
        short = {alias: profiles[called] for alias, called in self._profile_aliases.items() if called in profiles}
        return aliases | profiles | short

    def find(self, name: str) -> CatalogModel:
        """The model called ``name``, ``name:profile``, or an alias of either.

        Raises ``UnknownModel`` where there is none or it is switched off.
        """
        if model := self._lookup(name):
            return model
        if name in self._config.entries:
            message = f"The model {name!r} is switched off: set models.entries.{name}.enabled to true to serve it."
        else:
            names = self.names()
            more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
            there_is = ", ".join(names[:_SHOWN_NAMES]) + more if names else "none; add one to models.entries"
            message = f"There is no model {name[:200]!r}. The models are: {there_is}."
        raise UnknownModel(message, param="model")

    def fetchable(self, name: str) -> CatalogModel:
        """The model called ``name``, or that of any repo ``org/name[@revision]`` of the hub. Raises ``UnknownModel``.

        Once its files are in Hugging Face's cache, ``find`` knows such a repo as well. An entry's repo is that entry.
        """
        try:
            return self.find(name)
        except UnknownModel:
            entries = {entry.source: called for called, entry in self._config.entries.items()}
            if name in entries:
                return self.find(entries[name])
            if name in self._config.entries or not REPO.fullmatch(name) or "huggingface" not in self._config.programs:
                raise
        return CatalogModel(ModelSource(name, "repo", name), idle_ttl_s=self._config.idle_ttl)

    def passed_over(self) -> list[tuple[str, str]]:
        """The path of each thing in the folders that looks like a model and can't be served, and the reason."""
        return [one for folder in self.folders for one in folder.passed_over]

    def look_again(self) -> "Future[None] | None":
        """Have all folders of models looked at, done after 4 s at the latest; None where there is no such folder."""
        looks = [folder.refresh() for folder in self.folders]
        return all_of(looks) if looks else None

    def unsure(self, name: str) -> str:
        """Why it can't be told whether a folder of models holds ``name``, in a sentence; empty where it can."""
        if name in self._config.entries:
            return ""
        return next((why for folder in self.folders if (why := folder.unsure(name))), "")

    def pinned(self) -> list[str]:
        """The entries that are to be loaded at all times."""
        return [name for name, model in self._fixed.items() if model.pin]

    def problems(self) -> list[str]:
        """A sentence for each thing on a disk that does not answer."""
        told = [problem for folder in self.folders for problem in folder.problems()]
        more = (
            f"{path} has not answered for {silent_s:.0f} s: what needs it fails meanwhile"
            for path, silent_s in self._disk.silent().items()
            if not any(f"{path} has not" in problem for problem in told)
        )
        return [*told, *more]

    def _models(self) -> Mapping[str, CatalogModel]:
        sources = tuple(folder.sources for folder in self.folders)
        # A folder's mapping is replaced when something is new, so it need not be compared. Any thread may do this.
        seen = self._seen
        if seen is None or any(now is not then for now, then in zip(sources, seen.sources, strict=True)):
            models = MappingProxyType(self._merged(source for folder in sources for source in folder.values()))
            seen = self._seen = _Seen(sources, models, _short_names(models))
        return seen.models

    def _lookup(self, name: str) -> CatalogModel | None:
        if model := self._without_profile(name):
            return model
        base, _, profile = self._profile_aliases.get(name, name).rpartition(":")
        model = self._without_profile(base)
        return model.with_profile(profile) if model else None

    def _without_profile(self, name: str) -> CatalogModel | None:
        alias = self._fixed.get(self._aliases.get(name, ""))
        return self._fixed.get(name) or alias or self._models().get(name) or self._by_short_name(name)

    def _by_short_name(self, name: str) -> CatalogModel | None:
        """The model ``org/name``, where no other one has that name behind its organisation."""
        models = self._models()
        full = self._seen.short.get(name) if self._seen and name not in self._config.entries else None
        return models.get(full) if full else None

    def _merged(self, found: Iterable[ModelSource]) -> dict[str, CatalogModel]:
        models = dict(self._fixed)
        # A repo that an entry names is that entry's model, also while the entry is switched off.
        entered = {entry.source for entry in self._config.entries.values()}
        for source in (*found, *((BUILTIN, BUILTIN_EMBEDDING) if self._config.builtin else ())):
            # A name that an entry has belongs to the entry, also while that is switched off.
            if source.name in self._config.entries or (source.kind == "repo" and source.location in entered):
                continue
            embeddings = source == BUILTIN_EMBEDDING
            models.setdefault(
                source.name, CatalogModel(source, idle_ttl_s=self._config.idle_ttl, embeddings=embeddings)
            )
        return models

    def _open(self, before: "Catalog | None") -> list[ModelsDir]:
        """``models.dir``, ``models.dirs`` and other programs' folders; from ``before`` those that it has already."""
        config = self._config
        named = {absolute(text): text for text in (config.dir, *config.dirs) if text}
        other = [hub_cache()] if "huggingface" in config.programs else []
        other += lm_studio_folders() if "lm-studio" in config.programs else []
        known = {(folder.path, folder.optional): folder for folder in (before.folders if before else ())}
        paths = {**dict.fromkeys(other, True), **dict.fromkeys(named, False)}
        kept = {path: known[path, optional] for path, optional in paths.items() if (path, optional) in known}
        wait([folder.refresh() for folder in kept.values()], _ANSWER_S)
        folders: list[ModelsDir] = []
        # Those that the user named go first: their names count where two folders hold a model of one name.
        for path in (*named, *(path for path in other if path not in named)):
            try:
                folder = kept.get(path) or ModelsDir(
                    path, self._disk, optional=paths[path], trusted=lambda: _roots(folders)
                )
                folder.refuse_missing()
            except OSError:
                key = "models.dir" if named[path] == config.dir else "models.dirs"
                raise ConfigError(f"{key}: {named[path]!r} is not a folder", param=key) from None
            folders.append(folder)
        return folders


def _roots(folders: Iterable[ModelsDir]) -> list[Path]:
    """The folders that links may lead to, as far as they were read."""
    return [folder.root for folder in tuple(folders) if folder.root]


def _short_names(models: Iterable[str]) -> dict[str, str]:
    """``name`` -> ``org/name``, where no other model could be meant."""
    full: dict[str, list[str]] = {}
    for name in models:
        full.setdefault(name.rpartition("/")[2], []).append(name)
    return {short: names[0] for short, names in full.items() if len(names) == 1 and names[0] != short}
