"""Which server a command talks to, and with what key: the options that every client command has."""

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer

from plimsoll.cli.client import Client
from plimsoll.errors import ConfigError

if TYPE_CHECKING:
    from plimsoll.config import Config

P = ParamSpec("P")
URL_VARIABLE, KEY_VARIABLE, CONFIG_VARIABLE = "PLIMSOLL_URL", "PLIMSOLL_API_KEY", "PLIMSOLL_CONFIG"

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="Configuration file; default: $PLIMSOLL_CONFIG or the user's.", metavar="FILE"),
]
Url = Annotated[
    str | None, typer.Option("--url", help="The server; default: $PLIMSOLL_URL or as the config says.", metavar="URL")
]
ApiKey = Annotated[
    str | None,
    typer.Option("--api-key", help="Its key; other users can see it in ps: rather $PLIMSOLL_API_KEY.", metavar="KEY"),
]
KeyFile = Annotated[
    Path | None, typer.Option("--api-key-file", help="File that holds nothing but the key.", metavar="FILE")
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


class Link:
    """The server that a command was pointed at, and the configuration beside it; both are made at their first use."""

    def __init__(self, url: str | None, api_key: str | None, api_key_file: Path | None, file: Path | None) -> None:
        self.file = file
        # A URL that the user named, and not the configuration's; an empty text counts as none.
        self.named_url = url or os.environ.get(URL_VARIABLE) or None
        self._key = api_key
        self._key_file = api_key_file

    @functools.cached_property
    def config(self) -> "Config":
        """The effective configuration. Raises ``ConfigError``."""
        from plimsoll import config  # noqa: PLC0415 - a named URL needs none

        return config.load(self.file)

    @functools.cached_property
    def client(self) -> Client:
        """Raises ``ConfigError`` for a key or a configuration that can't be used."""
        return self.client_at(self.url)

    def client_at(self, url: str) -> Client:
        """A client of that server with the key that was given. Raises ``ConfigError`` for one that can't be used."""
        return Client(url, find_key(self._key, self._key_file))

    @property
    def url(self) -> str:
        return self.named_url or default_url(self.config)


def with_link(command: Callable[Concatenate[Link, P], None]) -> Callable[..., None]:
    """Give a command the options --url, --api-key, --api-key-file and --config, and hand it the ``Link`` they make."""

    @functools.wraps(command)
    def run(**values: Any) -> None:
        link = Link(*(values.pop(name) for name in _OPTIONS))
        command(link, **values)  # type: ignore[call-arg] # typer gives what the signature says

    signature = inspect.signature(command)
    own = [one.replace(kind=one.KEYWORD_ONLY) for one in list(signature.parameters.values())[1:]]
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in _OPTIONS.items()
    ]
    parameters = [*own, *more]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined] # what inspect reads
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


_OPTIONS: dict[str, Any] = {"url": Url, "api_key": ApiKey, "api_key_file": KeyFile, "file": ConfigFile}


def before_the_command(
    ctx: typer.Context, url: Url = None, api_key: ApiKey = None, api_key_file: KeyFile = None, file: ConfigFile = None
) -> None:
    """Take the same options before the command's name, as defaults like the environment's; alone, give the overview."""
    key = find_key(api_key, api_key_file) if api_key or api_key_file else None
    given = {URL_VARIABLE: url, KEY_VARIABLE: key, CONFIG_VARIABLE: str(file) if file else None}
    os.environ.update({name: value for name, value in given.items() if value})
    if ctx.invoked_subcommand is None:
        from plimsoll.cli.overview import overview  # noqa: PLC0415 - the commands start without it

        overview()


def find_key(key: str | None, file: Path | None) -> str | None:
    """The key itself, out of its file, or the environment's. Raises ``ConfigError`` for one that can't be sent."""
    where = "--api-key"
    if key is None and file is not None:
        where = str(file)
        try:
            key = file.expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--api-key-file: {file} can't be read: {error}") from None
        if not key:
            raise ConfigError(f"--api-key-file: {file} is empty")
    elif key is None:
        where, key = f"${KEY_VARIABLE}", os.environ.get(KEY_VARIABLE, "").strip() or None
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(f"{where}: a key is printable ASCII without spaces")
    return key


def default_url(config: "Config") -> str:
    """Where a server of this configuration answers."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.server.host, config.server.host)  # noqa: S104 - asked, not bound
    return f"http://[{host}]:{config.server.port}" if ":" in host else f"http://{host}:{config.server.port}"
