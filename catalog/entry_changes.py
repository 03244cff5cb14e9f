"""Changes of one model's entry: short names of keys to their places in the configuration file."""

from collections.abc import Mapping, Sequence
from typing import Any

from plimsoll.catalog.entries import source_text
from plimsoll.catalog.names import Catalog
from plimsoll.config import SamplingEntry
from plimsoll.config_file import REMOVED, Change, Key
from plimsoll.errors import BadRequest, UnknownModel

ON_THIS_MACHINE = frozenset({"source", "adapter", "chat_template", "hosts", "backend", "split"})
"""Keys that name files or hosts: set where the file is, and not by whoever may administer the server from afar."""


def entry_changes(catalog: Catalog, name: str, given: Mapping[str, Any], unset: Sequence[str] = ()) -> list[Change]:
    """What to change in the file so that the entry of the model ``name`` has the values ``given``.

    ``name`` may be ``NAME:PROFILE``: then the profile gets them. A model that was only found gets an entry.

    Raises:
        BadRequest: nothing is to be changed, or a key is set and unset.
        UnknownModel: there is no such model.

    """
    if not given and not unset:
        raise BadRequest("say what to set or unset, such as temperature=0.7", param="set")
    if both := set(given) & set(unset):
        raise BadRequest(f"{min(both)} is to be set and unset", param="unset")
    entries = catalog.config.entries
    entry, profile = _entry_and_profile(catalog, name)
    place: Key = ("models", "entries", entry)
    changes: list[Change] = []
    if entry not in entries:
        changes.append(((*place, "source"), source_text(catalog.find(entry).source)))
    inner: Key = (*place, "profiles", profile) if profile else place
    changes += [((*inner, *_path(key)), value) for key, value in given.items()]
    changes += [((*inner, *_path(key)), REMOVED) for key in unset]
    return changes


def _entry_and_profile(catalog: Catalog, name: str) -> tuple[str, str]:
    """The name of the entry that ``name`` means, and the profile in it, which may be a new one."""
    if name in catalog.config.entries:
        return name, ""
    try:
        model = catalog.find(name)
    except UnknownModel:
        base, _, profile = name.rpartition(":")
        if not base or not profile:
            raise
        return _entry_and_profile(catalog, base)[0], profile
    return model.source.name, model.profile


def _path(key: str) -> Key:
    """``temperature`` is a key of ``sampling``, also in a profile: ``profiles.precise.temperature``."""
    *outer, last = key.split(".")
    if last in SamplingEntry.__struct_fields__ and outer[-1:] != ["sampling"]:
        outer.append("sampling")
    return (*outer, last)
