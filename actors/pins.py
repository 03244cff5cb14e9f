"""Which models are pinned: by their entry, or by what was said while the server runs, which goes before it."""

from plimsoll.catalog import Catalog, CatalogModel
from plimsoll.errors import UnknownModel


class Pins:
    """What was said; owned by the Supervisor's ``Slots``."""

    def __init__(self) -> None:
        self._said: dict[str, bool] = {}

    def say(self, name: str, *, pinned: bool) -> None:
        """It holds until the server ends, or until the file says another thing than before."""
        self._said[name] = pinned

    def said(self, name: str) -> bool | None:
        """None where nothing was said, so that the entry holds."""
        return self._said.get(name)

    def names(self, catalog: Catalog) -> list[str]:
        """All that are pinned, without an actor too."""
        by_entry = dict.fromkeys(catalog.pinned(), True)
        return [name for name, pinned in (by_entry | self._said).items() if pinned]

    def forget(self, before: Catalog, now: Catalog) -> None:
        """What was said goes by the file again where that says another thing now."""
        for name in list(self._said):
            old, new = known(before, name), known(now, name)
            if old is None or new is None or old.pin != new.pin:
                del self._said[name]


def known(catalog: Catalog, name: str) -> CatalogModel | None:
    try:
        return catalog.find(name)
    except UnknownModel:
        return None
