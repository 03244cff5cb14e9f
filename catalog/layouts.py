"""Which models lie in a folder, laid out by hand, by Hugging Face's cache or by LM Studio. Reads the disk."""

import ast
import functools
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from plimsoll.catalog.files import problem, read_object
from plimsoll.catalog.model_card import ENCODER_TYPES, head_labels, is_cross_encoder
from plimsoll.catalog.source import ModelSource, split_name, split_parts

_REPO_FOLDER = re.compile(r"models--([\w.-]+?)--([\w.-]+)", re.ASCII)
_REVISION = re.compile(r"[0-9a-f]{7,64}", re.ASCII)
# A folder of an organisation that has more is no folder of models.
_MOST_INSIDE = 2000


class Found(NamedTuple):
    """The models at one path; ``passed_over`` has the path and the reason of each thing that looks like one."""

    sources: tuple[ModelSource, ...] = ()
    passed_over: tuple[tuple[str, str], ...] = ()


def look_at(path: str, roots: Sequence[Path]) -> Found:
    """The models at ``path``, an entry of a folder of models; links may lead to ``roots`` only. Raises ``OSError``.

    A folder or .gguf file is one model, named as it is. A folder of folders is an organisation, as LM Studio has them:
    its models are ``org/name``. ``models--org--name`` is a repo in Hugging Face's cache, served as ``org/name``.
    """
    place = Path(path)
    if link := next((part for part in split_parts(place) if _leads_out(part, roots)), None):
        return _not_served(place, _leads_out_text(link)) if _may_be_model(place) else Found()
    if place.suffix == ".gguf":
        return _gguf_files(split_name(place), [place]) if place.is_file() else Found()
    if match := _REPO_FOLDER.fullmatch(place.name):
        return _in_hub_cache(place, f"{match[1]}/{match[2]}", roots)
    if (place / "config.json").is_file():
        if link := _link_out(place, roots):
            return _not_served(place, _leads_out_text(link))
        # One without its weights is offered, too: the load says what is missing.
        return Found((ModelSource(place.name, "folder", path),))
    return _organisation(place, roots) if place.is_dir() else Found()


def _in_hub_cache(place: Path, repo: str, roots: Sequence[Path]) -> Found:
    try:
        with os.scandir(place / "refs") as entries:
            revisions = sorted(one.name for one in entries if one.is_file())
    except FileNotFoundError:
        revisions = []
    if not revisions:
        return _not_served(place, "none of its revisions was fetched")
    names = {revision: repo if revision == "main" else f"{repo}@{revision}" for revision in revisions}
    return _joined([_revision(place, revision, name, roots) for revision, name in names.items()])


def _revision(place: Path, revision: str, repo: str, roots: Sequence[Path]) -> Found:
    try:
        snapshot = _snapshot(place, revision)
    except ValueError as error:
        return _not_served(place, str(error))
    if link := _link_out(snapshot, roots):
        return _not_served(place, _leads_out_text(link))
    has_config = (snapshot / "config.json").is_file()
    reason = _reason(snapshot) if has_config else "it holds neither a config.json nor a .gguf file"
    if reason is None:
        return Found((ModelSource(repo, "repo", repo),))
    if files := _gguf_in(snapshot):
        return _gguf_files(repo, files)
    return _not_served(place, reason)


def _snapshot(place: Path, named: str) -> Path:
    """The files of a revision. Raises ``ValueError`` with what is missing, as half a sentence."""
    try:
        revision = (place / "refs" / named).read_text(encoding="ascii").strip()
    except ValueError:
        revision = ""
    if not _REVISION.fullmatch(revision):
        raise ValueError(f"refs/{named} names no revision")
    snapshot = place / "snapshots" / revision
    if not snapshot.is_dir():
        raise ValueError(f"its files of revision {revision[:12]} are not there")
    return snapshot


def _organisation(place: Path, roots: Sequence[Path]) -> Found:
    with os.scandir(place) as entries:
        inside = sorted(Path(one.path) for one in entries if not one.name.startswith("."))
    if len(inside) > _MOST_INSIDE:
        return _not_served(place, f"it holds more than {_MOST_INSIDE} entries")
    loose = _gguf_in(place)
    found = [_in_organisation(path, f"{place.name}/{path.name}", roots) for path in inside if path not in loose]
    if loose:
        link = _link_out(place, roots)
        found.append(_not_served(place, _leads_out_text(link)) if link else _gguf_files(place.name, loose))
    return _joined(found)


def _joined(found: Sequence[Found]) -> Found:
    sources = tuple(source for one in found for source in one.sources)
    return Found(sources, tuple(passed for one in found for passed in one.passed_over))


def _in_organisation(path: Path, name: str, roots: Sequence[Path]) -> Found:
    if _leads_out(path, roots):
        return _not_served(path, _leads_out_text(path)) if _may_be_model(path) else Found()
    if not path.is_dir():
        return Found()
    if link := _link_out(path, roots):
        return _not_served(path, _leads_out_text(link))
    if (path / "config.json").is_file():
        reason = _reason(path)
        return _not_served(path, reason) if reason else Found((ModelSource(name, "folder", str(path)),))
    if files := _gguf_in(path):
        return _gguf_files(name, files)
    has_weights = any(path.glob("*.safetensors"))
    return _not_served(path, "it has weights and no config.json") if has_weights else Found()


def _not_served(path: Path, reason: str) -> Found:
    return Found(passed_over=((str(path), reason),))


def _gguf_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.gguf") if path.is_file())


def _gguf_files(name: str, files: Sequence[Path]) -> Found:
    """One file is called ``name``, several ``name/file``; projectors for images are no models.

    A model in parts is its first one, where all are there.
    """
    sources: list[Path] = []
    passed_over: list[tuple[str, str]] = []
    for file in files:
        parts = split_parts(file)
        if missing := [part for part in parts if not part.is_file()]:
            passed_over.append((str(file), f"its part {missing[0].name} is not there"))
        elif file != parts[0]:
            continue
        elif file.name.startswith("mmproj"):
            passed_over.append((str(file), "it is a projector for images, not a language model"))
        else:
            sources.append(file)
    names = [name] if len(sources) == 1 else [f"{name}/{split_name(file)}" for file in sources]
    found = zip(names, sources, strict=True)
    return Found(tuple(ModelSource(called, "gguf", str(file)) for called, file in found), tuple(passed_over))


def _reason(folder: Path) -> str | None:
    """Why the folder can't be served, or None. A model that somebody else's program put there is offered whole only."""
    if reason := problem(folder):
        return reason
    try:
        config = read_object(folder / "config.json")
    except (OSError, ValueError) as error:
        return f"its config.json can't be read ({str(error)[:200]})"
    if is_cross_encoder(config) and (labels := head_labels(config)) not in (1, None):
        return f"it is a classifier of {labels} labels; a cross encoder that reranks gives one score"
    kind = config.get("model_type")
    if not isinstance(kind, str):
        return "its config.json names no model_type"
    types = served_types()
    return f"mlx-lm has no models of type {kind[:60]!r}" if types and kind not in types else None


@functools.cache
def served_types() -> frozenset[str]:
    """Every ``model_type`` that the installed mlx-lm has a module or another name for; empty where there is none."""
    spec = importlib.util.find_spec("mlx_lm")
    if spec is None or not spec.origin:
        return frozenset()
    folder = Path(spec.origin).parent
    modules = {file.stem for file in (folder / "models").glob("*.py")}
    return frozenset(modules | set(ENCODER_TYPES) | set(_other_names(folder / "utils.py")))


def _other_names(utils: Path) -> Mapping[str, str]:
    """``MODEL_REMAPPING``, read and not imported: the front process has no MLX in it."""
    try:
        for node in ast.parse(utils.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MODEL_REMAPPING":
                names: dict[str, str] = ast.literal_eval(node.value)
                return names
    except (OSError, ValueError, SyntaxError):
        pass
    return {}


def _may_be_model(path: Path) -> bool:
    return path.suffix == ".gguf" or path.is_dir() or not path.exists()


def _link_out(folder: Path, roots: Sequence[Path]) -> Path | None:
    """The first link in the folder that leads out of ``roots``."""
    with os.scandir(folder) as entries:
        links = [Path(one.path) for one in entries if one.is_symlink()]
    return next((link for link in links if _leads_out(link, roots)), None)


def _leads_out(path: Path, roots: Sequence[Path]) -> bool:
    # realpath and not resolve(), which raises for links in a circle.
    return path.is_symlink() and not any(Path(os.path.realpath(path)).is_relative_to(root) for root in roots)


def _leads_out_text(link: Path) -> str:
    target = os.path.realpath(link)
    what = "a link to something that is not there" if not Path(target).exists() else "a link out of the models' folders"
    return f"{link.name} is {what} ({target[:200]}); name the folder that it leads to in models.dirs"


def hub_cache() -> Path:
    """Hugging Face's cache, by the variables that huggingface_hub reads (its import would slow every start)."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    hugging_face = os.environ.get("HF_HOME") or f"{home}/huggingface"
    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or f"{hugging_face}/hub"
    return Path(os.path.expandvars(chosen)).expanduser().absolute()


def lm_studio_folders() -> list[Path]:
    """Where LM Studio keeps models, now and before version 0.3.6."""
    return [Path(name).expanduser().absolute() for name in ("~/.lmstudio/models", "~/.cache/lm-studio/models")]
