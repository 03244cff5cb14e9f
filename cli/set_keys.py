"""``plimsoll set`` and ``unset``: a model's entry in the user's configuration file, without an editor."""

from typing import Annotated, Any

import typer
import yaml

from plimsoll import config, config_file
from plimsoll.catalog.entry_changes import entry_changes
from plimsoll.catalog.names import Catalog
from plimsoll.cli.client import Unreachable
from plimsoll.cli.complete import model_names
from plimsoll.cli.link import AsJson, Link, with_link
from plimsoll.cli.output import hint, print_json
from plimsoll.cli.pull import is_this_machine
from plimsoll.errors import BadRequest

_Model = Annotated[str, typer.Argument(help="Its name, or NAME:PROFILE.", autocompletion=model_names, metavar="MODEL")]
# Their values are texts, whatever YAML would make of them.
_TEXTS = frozenset({"system_prefix", "chat_template", "adapter", "source"})
_LISTS = frozenset({"aliases"})


@with_link
def set(  # noqa: A001 - the command's name
    link: Link,
    model: _Model,
    values: Annotated[list[str], typer.Argument(help="Such as temperature=0.7 pin=true.", metavar="KEY=VALUE...")],
    *,
    as_json: AsJson = False,
) -> None:
    """Set keys of a model's entry in the configuration file; a running server follows at once."""
    _change(link, model, dict(map(assignment, values)), [], as_json=as_json)


@with_link
def unset(
    link: Link,
    model: _Model,
    keys: Annotated[list[str], typer.Argument(help="Such as temperature pin.", metavar="KEY...")],
    *,
    as_json: AsJson = False,
) -> None:
    """Take keys out of a model's entry, so that their defaults hold again."""
    _change(link, model, {}, keys, as_json=as_json)


def assignment(text: str) -> tuple[str, Any]:
    """``key=value`` as key and value, read as YAML reads it. Raises ``BadRequest``."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise BadRequest(f"{text!r} is not like temperature=0.7")
    last = key.rpartition(".")[2]
    if last in _TEXTS:
        return key, value
    if last in _LISTS:
        return key, [one.strip() for one in value.strip("[]").split(",") if one.strip()]
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise BadRequest(f"{key}: {value!r} is not a value that YAML can read; put a text between quotes") from None


def _change(link: Link, model: str, given: dict[str, Any], unset: list[str], *, as_json: bool) -> None:
    if link.named_url and not is_this_machine(link.client.host):
        told = link.client.post("/admin/settings", {"model": model, "set": given, "unset": unset})
        told["server"] = "reloaded"
    else:
        told = _in_file(link, entry_changes(Catalog(link.config.models), model, given, unset))
    if as_json:
        print_json(told)
        return
    for key in told["changed"]:
        typer.echo(f"changed: {key}")
    if not told["changed"]:
        typer.echo("nothing has changed")
    if told["server"] == "none":
        hint(f"(in {told['file']}; no server is running)")
    elif told["server"] == "other file":
        hint(f"(in {told['file']}; the server at {link.url} reads another file: see its --config)")


def _in_file(link: Link, changes: list[config_file.Change]) -> dict[str, Any]:
    """Change the file on this machine, and have the server on this machine, if one runs, read it again."""
    path = config.find_user_file(link.file) or config.default_user_file()
    before = link.config.models.entries
    config_file.change(path, changes)
    after = config.load(path).models.entries
    changed = [f"models.entries.{name}" for name in after | before if after.get(name) != before.get(name)]
    server = "reloaded"
    try:
        reloaded = link.client.post("/admin/reload", {})["changed"]
    except Unreachable:
        server = "none"
    else:
        if not {*changed} <= {*reloaded}:
            server = "other file"
    return {"file": str(path), "changed": changed, "server": server}
