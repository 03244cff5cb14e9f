"""The configuration as ``serve`` takes it: at the start, and again at every reload."""

from pathlib import Path
from typing import Any

import msgspec

from plimsoll import config
from plimsoll.cli import sense
from plimsoll.config import Config


class SettingsFile:
    """The user's file and what the command line overrides of it."""

    def __init__(self, file: Path | None, **server: Any) -> None:
        """``server`` holds the options that were given, and None for those that were not."""
        self._path = file
        self._overrides = {name: value for name, value in server.items() if value is not None}

    def read(self) -> Config:
        """What the file says now. Raises ``ConfigError``, also for a file that was there before and is not any more."""
        found = config.find_user_file(self._path)
        effective = config.load(found)
        effective = msgspec.structs.replace(
            effective, server=msgspec.structs.replace(effective.server, **self._overrides)
        )
        sense.refuse_nonsense(effective)
        # From now on this one: while an editor replaces it, no other and no default may take its place.
        self._path = found.absolute() if found else None
        return effective
