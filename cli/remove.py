"""``plimsoll rm``: delete the files of a model that were fetched or converted here."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import quote

import typer
from huggingface_hub import CacheNotFound, scan_cache_dir

from plimsoll.catalog.conversion import is_result
from plimsoll.catalog.entries import CatalogModel
from plimsoll.catalog.files import local_folder
from plimsoll.catalog.installed import default_cache_dir
from plimsoll.catalog.layouts import hub_cache
from plimsoll.catalog.names import Catalog
from plimsoll.catalog.source import split_revision
from plimsoll.cli.client import Refused, Unreachable
from plimsoll.cli.complete import model_names
from plimsoll.cli.link import AsJson, Link, with_link
from plimsoll.cli.output import NO, at_terminal, print_json
from plimsoll.cli.pull import is_this_machine
from plimsoll.journal.lines import size

_PROBE_S = 5.0


class _Files(NamedTuple):
    """What would be deleted: its bytes, where it is, and what does it."""

    size_bytes: int
    where: str
    delete: Callable[[], None]


@with_link
def rm(
    link: Link,
    model: Annotated[str, typer.Argument(help="Its name.", autocompletion=model_names, metavar="MODEL")],
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a model's files from this machine's disk; a running server unloads it first."""
    found = Catalog(link.config.models).fetchable(model)
    files = _files_of(found, default_cache_dir(link.config))
    if not yes:
        if not at_terminal():
            raise Refused(f"{size(files.size_bytes)} in {files.where} would be deleted: say --yes to do it")
        if not typer.confirm(f"Delete {size(files.size_bytes)} in {files.where}?", err=True):
            raise typer.Exit(NO)
    _unload(link, found.source.name)
    files.delete()
    if as_json:
        print_json({"model": found.source.name, "freed_bytes": files.size_bytes, "path": files.where})
    else:
        typer.echo(f"{found.source.name} is deleted: {size(files.size_bytes)} in {files.where}")


def _files_of(model: CatalogModel, cache_dir: Path) -> _Files:
    """Raises ``Refused`` where there is nothing, or nothing that Plimsoll may delete."""
    source = model.source
    if source.kind == "repo":
        return _in_hub_cache(source.name, *split_revision(source.location))
    if source.kind == "gguf" and Path(source.location).is_relative_to(hub_cache()):
        folder = Path(source.location).relative_to(hub_cache()).parts[0]
        return _in_hub_cache(source.name, folder.removeprefix("models--").replace("--", "/"), "main")
    if source.kind in ("builtin", "gguf") and (made := local_folder(source, cache_dir)) and made.is_dir():
        if source.kind == "gguf" and not made.is_relative_to(cache_dir):
            raise Refused(f"{made} is not in {cache_dir}")
        return _folder(made)
    if source.kind == "folder" and is_result(Path(source.location)):
        return _folder(Path(source.location))
    if source.kind in ("folder", "gguf"):
        raise Refused(f"{source.location} was not put there by Plimsoll: delete it by hand")
    raise Refused(f"{source.name} has no files on this machine")


def _folder(folder: Path) -> _Files:
    held = sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())
    return _Files(held, str(folder), lambda: shutil.rmtree(folder))


def _in_hub_cache(name: str, repo: str, revision: str) -> _Files:
    nothing = f"{name} has no files on this machine"
    try:
        cache = scan_cache_dir()
    except CacheNotFound:
        raise Refused(nothing) from None
    held = next((one for one in cache.repos if one.repo_type == "model" and one.repo_id == repo), None)
    if held is None:
        raise Refused(nothing)
    commits = [one.commit_hash for one in held.revisions if revision in one.refs]
    if not commits:
        raise Refused(f"{nothing} of the revision {revision}")
    plan = cache.delete_revisions(*commits)
    return _Files(plan.expected_freed_size, str(held.repo_path), plan.execute)


def _unload(link: Link, name: str) -> None:
    """Have the running server, if there is one, let go of the model. Raises ``Refused`` for a pinned one."""
    try:
        models: list[dict[str, Any]] = link.client.get("/admin/models", timeout_s=_PROBE_S)["models"]
    except Unreachable:
        return
    if not is_this_machine(link.client.host):
        raise Refused(f"{link.url} is on another machine, and files are deleted on this one: leave --url out")
    for one in models:
        if one["name"] == name and one["state"] not in ("cold", "stopped"):
            if one["pinned"]:
                raise Refused(f"{name} is pinned; let it go first: plimsoll unpin {name}")
            link.client.post(f"/admin/models/{quote(name, safe='/:@')}/unload", {}, timeout_s=None)
