"""API keys: read once from where the configuration says they are, found by what a request presents."""

import enum
import hashlib
import hmac
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from plimsoll.config import ApiKey
from plimsoll.errors import ConfigError
from plimsoll.units import check_secret


class Role(enum.IntEnum):
    """What a key may do; each role includes those below it."""

    READ = 1
    USER = 2
    ADMIN = 3


class Caller(msgspec.Struct, frozen=True):
    """Who asks. ``name`` is empty where no keys are configured."""

    name: str
    role: Role


EVERYBODY = Caller("", Role.ADMIN)
# What stood in variables, for the next reading.
_taken: dict[str, str] = {}


class Keys:
    """The keys, of which only digests are kept."""

    def __init__(self, keys: Sequence[tuple[Caller, str]]) -> None:
        self._digests = [(caller, _digest(key)) for caller, key in keys]

    def __len__(self) -> int:
        return len(self._digests)

    def find(self, presented: str) -> Caller | None:
        """Whose key that is. Takes the same time whichever it is, and if it is none."""
        digest, found = _digest(presented), None
        for caller, mine in self._digests:
            if hmac.compare_digest(mine, digest):
                found = caller
        return found


def read_keys(entries: Sequence[ApiKey]) -> Keys:
    """The keys of ``access.keys``, those of variables and files included. Raises ``ConfigError``."""
    keys: list[tuple[Caller, str]] = []
    for index, entry in enumerate(entries):
        where, key = _read(entry, f"access.keys[{index}]")
        try:
            check_secret(key)
        except ValueError as error:
            raise ConfigError(f"{where}: {str(error).replace('Expected', 'the key must have')}", param=where) from None
        if twin := next((caller.name for caller, other in keys if other == key), None):
            raise ConfigError(f"{where}: this is the same key as that of {twin!r}", param=where)
        keys.append((Caller(entry.name, Role[entry.role.upper()]), key))
    return Keys(keys)


def presented_keys(authorization: str, x_api_key: str) -> list[str]:
    """The keys that a request's two headers hold; another scheme than Bearer is somebody else's business."""
    scheme, _, token = authorization.partition(" ")
    found = [token.strip()] if scheme.lower() == "bearer" else []
    return [key for key in (*found, x_api_key.strip()) if key]


def _read(entry: ApiKey, where: str) -> tuple[str, str]:
    if entry.key is not None:
        return f"{where}.key", entry.key.reveal()
    if entry.env is not None:
        where = f"{where}.env"
        if not (text := _out_of_environment(entry.env)):
            raise ConfigError(f"{where}: the environment variable {entry.env} is not set", param=where)
        return where, text
    where, path = f"{where}.file", Path(str(entry.file)).expanduser()
    try:
        return where, path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{where}: {path} can't be read: {error.strerror}", param=where) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: {path} is not text", param=where) from None


def _out_of_environment(name: str) -> str:
    """Kept here from then on: processes that start later, workers and downloads, do not inherit the key."""
    if name in os.environ:
        _taken[name] = os.environ.pop(name)
    return _taken.get(name, "").strip()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
